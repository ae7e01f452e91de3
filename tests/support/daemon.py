"""A daemon's server side around a scripted engine, in the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
from support.byte_model import ByteModel
from support.eventually import eventually
from support.patience import Patience
from support.scripted_engine import scripted

from semipd.config.config import Override, default_engine_settings, load_config
from semipd.core.errors import SemipdError
from semipd.core.settings import EngineSettings
from semipd.daemon.access.addresses import claim_http, claim_socket
from semipd.daemon.engine.supervisor import Supervisor
from semipd.daemon.model.served_model import ServedModel
from semipd.daemon.requests.generation import GenerationService
from semipd.daemon.requests.options import EngineLimits
from semipd.daemon.requests.rules import RequestRules
from semipd.daemon.requests.table import RequestTable
from semipd.daemon.servers.http import serve_http
from semipd.daemon.servers.unix_socket import serve_unix_socket
from semipd.daemon.state.services import Services
from semipd.engine.launcher import EngineChild, spawn_engine

MAX_BODY_BYTES = 100_000
FAST_RESTARTS = {"supervision.interval_s": 0.2, "supervision.backoff_s": 0.02}


async def until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    """For what nobody announces."""
    await eventually(condition, "the condition", limit_s)


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

    async def ask(
        self, method: str, path: str, key: str | None = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body (parsed if it is JSON) and headers of the answer to an empty request."""
        sent = {"Content-Type": "application/json"} if method != "GET" else {}
        sent |= headers | ({"Authorization": f"Bearer {key}"} if key else {})
        data = b"{}" if method in ("POST", "PUT", "PATCH") else None
        async with self.http.request(method, self.url + path, headers=sent, data=data) as response:
            text = await response.text()
            body = json.loads(text) if response.content_type == "application/json" else text
            return response.status, body, response.headers

    async def complete(self, path: str = "/v1/completions", /, **body: Any) -> dict[str, Any]:
        status, answer, _ = await self.post(body, path)
        assert status == 200, answer
        return answer

    async def chat(self, **body: Any) -> dict[str, Any]:
        return await self.complete("/v1/chat/completions", **body)

    async def stream(self, path: str = "/v1/completions", /, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, without the final [DONE], which is checked."""
        body |= {"stream": True}
        async with self.http.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            events = (await response.read()).decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    async def engine(self) -> dict[str, Any]:
        """Its status; a scripted engine adds what it was told."""
        return cast(dict[str, Any], await self.services.supervisor.status(limit_s=20))

    async def engine_says(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask the engine until the condition holds."""
        patience = Patience(40)
        while not condition(status := await self.engine()):
            assert not patience.is_over(), status
            await asyncio.sleep(0.01)
        return status


@asynccontextmanager
async def running(
    tmp_path: Path,
    model: ServedModel | None = None,
    start: bool = True,
    fake: EngineSettings | None = None,
    settings: Mapping[str, Any] | None = None,
    spawn: Callable[[], EngineChild] | None = None,
    **script: Any,
) -> AsyncIterator[Running]:
    """With `fake`, a real engine process on the fake device; else a scripted one; `spawn` starts another.
    `settings`: options of the configuration that concern the daemon's server side, such as
    admission.max_waiting_requests."""
    given = {"model.name": "bytes", "server.max_body_bytes": MAX_BODY_BYTES}
    given |= FAST_RESTARTS | dict(settings or {})
    overrides = [
        Override(key, str(value).lower() if isinstance(value, bool) else str(value), "test")
        for key, value in given.items()
    ]
    config = load_config(overrides=overrides)
    stop_reasons: asyncio.Queue[str] = asyncio.Queue()
    spawn = spawn or (scripted(**script) if fake is None else spawn_engine)
    supervisor = Supervisor(fake or default_engine_settings(), spawn, config.supervision)
    supervisor.observer = table = RequestTable(supervisor)
    generation = GenerationService(model or ByteModel(), table, RequestRules.of(config))
    services = Services("bytes", supervisor, table, generation, stop_reasons.put_nowait, config)
    listeners = claim_http("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
    path = tmp_path / "daemon.sock"
    with claim_socket(path, group=services.auth.guests_gid) as unix_listener:
        async with (
            services.vitals.watched(),
            services.drain.watched(),
            serve_http(services, listeners),
            serve_unix_socket(services, unix_listener),
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http,
        ):
            if start:
                supervisor.on_ready.append(
                    lambda ready: generation.engine_is_ready(EngineLimits.of(ready.info))
                )
                await supervisor.start()
            try:
                yield Running(url, path, services, http, stop_reasons)
            finally:
                table.close(SemipdError("shutting_down", "The daemon is shutting down."))
                await supervisor.stop()
