"""Where requests go: an OpenAI server over HTTP, or our daemon's Unix socket."""

import json
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from benchlib.load.http_client import HttpClient, HttpStatusError
from benchlib.load.records import Record
from semipd.client import AsyncClient
from semipd.core.errors import SemipdError


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """`vocab_size` and `max_model_len` are 0 when the server does not say. `versions`: of the server."""

    name: str
    vocab_size: int
    max_model_len: int
    versions: Mapping[str, object] = field(default_factory=dict)


class Prepared(Protocol):
    """A request that is encoded as far as it can be."""

    async def send(self, record: Record, start_s: float) -> None:
        """Send it and note in `record` what comes back, in seconds since `start_s` (perf_counter).

        Raises SemipdError when it does not end well; RefusedError when the server says no.
        """


class RefusedError(SemipdError):
    """The server's no, before any token."""


class Target(Protocol):
    async def facts(self) -> ModelFacts:
        """Raises SemipdError."""

    def prepare(self, prompt: list[int] | str, output_tokens: int) -> Prepared: ...

    async def close(self) -> None: ...


class HttpTarget:
    """POST /v1/completions of any OpenAI server. `fields` go into every body beside prompt and max_tokens;
    `model` None: as /v1/models says; "": the field is left out."""

    def __init__(self, url: str, fields: dict[str, Any], model: str | None = None, api_key: str = "") -> None:
        self._client = HttpClient(url, api_key)
        self._fields = fields
        self._model = model

    async def facts(self) -> ModelFacts:
        """The model's name is then used in every request."""
        cards = (await self._client.get_json("/v1/models")).get("data") or [{}]
        if self._model is None:
            self._model = str(cards[0].get("id", ""))
        card: dict[str, Any] = next((card for card in cards if card.get("id") == self._model), {})
        status = await self._status()
        info = status.get("device_info", {})
        return ModelFacts(
            name=self._model,
            vocab_size=int(card.get("vocab_size") or info.get("vocab_size") or 0),
            max_model_len=int(card.get("max_model_len") or info.get("max_model_len") or 0),
            versions=status.get("versions", {}),
        )

    async def _status(self) -> dict[str, Any]:
        """Our daemon's status document; empty for other servers."""
        try:
            return await self._client.get_json("/v1/status")
        except HttpStatusError:
            return {}

    def prepare(self, prompt: list[int] | str, output_tokens: int) -> "_HttpPrepared":
        body = self._fields | {"prompt": prompt, "max_tokens": output_tokens, "stream": True}
        if self._model:
            body["model"] = self._model
        encoded = json.dumps(body, separators=(",", ":")).encode()
        return _HttpPrepared(self._client, self._client.post_head("/v1/completions", encoded))

    async def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _HttpPrepared:
    client: HttpClient
    request: bytes

    async def send(self, record: Record, start_s: float) -> None:
        reader = _CompletionReader(record, start_s)
        try:
            await self.client.stream(self.request, reader.take)
        except HttpStatusError as error:
            raise RefusedError(error.code, error.message) if error.is_refusal else error from error
        reader.check_end()


class _CompletionReader:
    """Events of one streamed completion."""

    def __init__(self, record: Record, start_s: float) -> None:
        self._record = record
        self._start_s = start_s
        self._is_over = False

    def take(self, data: bytes, now_s: float) -> None:
        """Raises SemipdError for an error event."""
        if data == b"[DONE]":
            self._is_over = True
            return
        event = json.loads(data)
        if event.get("error"):
            raise _stream_error(event["error"])
        if event.get("usage"):
            self._record.take_usage(event["usage"])
        for choice in event.get("choices") or ():
            self._take_choice(choice, now_s)

    def _take_choice(self, choice: dict[str, Any], now_s: float) -> None:
        """Some servers say the finish reason in an event of its own, which brings no token; but when nothing
        came before it, the only token was one without text."""
        is_last = choice.get("finish_reason") is not None
        times = self._record.event_times_s
        if choice.get("text") or not is_last or not times:
            times.append(now_s - self._start_s)
        self._is_over |= is_last

    def check_end(self) -> None:
        if not self._is_over:
            raise SemipdError("stream_truncated", "The stream ended without a finish reason.")


def _stream_error(error: Any) -> SemipdError:
    if isinstance(error, dict):
        return SemipdError(str(error.get("code") or "stream_error"), str(error.get("message")))
    return SemipdError("stream_error", str(error))


class SocketTarget:
    """The daemon's Unix socket; all requests share one connection. `fields`: of the generate request."""

    def __init__(self, client: AsyncClient, fields: dict[str, Any]) -> None:
        self._client = client
        self._fields = fields

    @classmethod
    async def connect(cls, path: Path | None, fields: dict[str, Any]) -> Self:
        """`path` None: where the daemon puts it. Raises SemipdError."""
        return cls(await AsyncClient.connect(path), fields)

    async def facts(self) -> ModelFacts:
        status = await self._client.status()
        model, info = status["model"], status["device_info"]
        vocab_size, max_model_len = info["vocab_size"] if info else 0, model["max_model_len"] or 0
        return ModelFacts(model["name"], vocab_size, max_model_len, status["versions"])

    def prepare(self, prompt: list[int] | str, output_tokens: int) -> "_SocketPrepared":
        # four bytes a token instead of a Python object: a long trace is prepared as a whole
        packed = prompt if isinstance(prompt, str) else array("I", prompt)
        return _SocketPrepared(self._client, packed, self._fields | {"max_tokens": output_tokens})

    async def close(self) -> None:
        await self._client.close()


@dataclass(frozen=True, slots=True)
class _SocketPrepared:
    client: AsyncClient
    prompt: "array[int] | str"
    fields: dict[str, Any]

    async def send(self, record: Record, start_s: float) -> None:
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt.tolist()
        try:
            async with self.client.generate(prompt, **self.fields) as stream:
                async for item in stream:
                    if item.token_ids:
                        record.event_times_s.append(time.perf_counter() - start_s)
                    if item.usage:
                        record.take_usage(item.usage)
        except SemipdError as error:
            if record.event_times_s or error.code == "connection_lost":
                raise
            raise RefusedError(error.code, error.message, error.hint) from error
