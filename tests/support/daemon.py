"""A daemon's server side around a scripted engine, in the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from support.byte_model import ByteModel
from support.scripted_engine import scripted

from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.daemon.addresses import claim_http, claim_socket
from semipd.daemon.generation import GenerationService, Limits
from semipd.daemon.http import serve_http
from semipd.daemon.requests import RequestTable
from semipd.daemon.served_model import ServedModel
from semipd.daemon.services import Services
from semipd.daemon.supervisor import Supervisor
from semipd.daemon.unix_socket import serve_unix_socket
from semipd.engine.launcher import spawn_engine

MAX_BODY_BYTES = 100_000


@dataclass
class Running:
    url: str
    socket_path: Path
    services: Services
    http: aiohttp.ClientSession
    stop_reasons: asyncio.Queue[str]

    async def post(
        self, body: Any, path: str = "/v1/completions", **headers: str
    ) -> tuple[int, dict[str, Any], aiohttp.ClientResponse]:
        """`body` is sent as JSON unless it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | headers
        async with self.http.post(self.url + path, data=data, headers=sent) as response:
            return response.status, json.loads(await response.read()), response

    async def complete(self, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
        status, answer, _ = await self.post(body, path)
        assert status == 200, answer
        return answer

    async def chat(self, **body: Any) -> dict[str, Any]:
        return await self.complete("/v1/chat/completions", **body)

    async def stream(self, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, without the final [DONE], which is checked."""
        body |= {"stream": True}
        async with self.http.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            events = (await response.read()).decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    async def engine(self) -> dict[str, Any]:
        return await self.services.supervisor.status(limit_s=20)

    async def engine_says(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask the engine until the condition holds."""
        for _ in range(2000):
            status = await self.engine()
            if condition(status):
                return status
            await asyncio.sleep(0.01)
        raise AssertionError(status)


@asynccontextmanager
async def running(
    tmp_path: Path,
    model: ServedModel | None = None,
    start: bool = True,
    fake: EngineSettings | None = None,
    **script: Any,
) -> AsyncIterator[Running]:
    """With `fake`, a real engine process on the fake device; else a scripted one."""
    stop_reasons: asyncio.Queue[str] = asyncio.Queue()
    spawn = scripted(**script) if fake is None else spawn_engine
    supervisor = Supervisor(fake or EngineSettings(), lambda message: table.on_message(message), spawn)
    table = RequestTable(supervisor)
    generation = GenerationService(model or ByteModel(), table)
    services = Services("bytes", supervisor, table, generation, stop_reasons.put_nowait)
    listeners = claim_http("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    path = tmp_path / "daemon.sock"
    with claim_socket(path) as unix_listener:
        async with (
            services.vitals.watched(),
            serve_http(services, listeners, "127.0.0.1", MAX_BODY_BYTES),
            serve_unix_socket(services, unix_listener),
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
        ):
            if start:
                ready = await supervisor.start()
                generation.engine_is_ready(Limits(ready.vocab_size, ready.max_model_len))
            try:
                yield Running(url, path, services, http, stop_reasons)
            finally:
                table.close(SemipdError("shutting_down", "The daemon is shutting down."))
                await supervisor.stop()
