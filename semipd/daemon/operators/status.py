"""HTTP routes that say how the daemon is: probes, version, load, status, metrics."""

from typing import TypedDict

from aiohttp import web

from semipd import __version__
from semipd.core.state.daemon import Status
from semipd.daemon.state.services import Services


class VersionAnswer(TypedDict):
    version: str


class LoadAnswer(TypedDict):
    """`server_load`: requests for tokens being served."""

    server_load: int


class HealthAnswer(TypedDict):
    status: str


async def health(_services: Services, _request: web.Request) -> HealthAnswer:
    return {"status": "ok"}


async def ping(_services: Services, _request: web.Request) -> web.Response:
    """The same for those who want no body."""
    return web.Response()


async def ready(services: Services, _request: web.Request) -> HealthAnswer:
    await services.check_ready()
    return {"status": "ready"}


async def version(_services: Services, _request: web.Request) -> VersionAnswer:
    return {"version": __version__}


async def load(services: Services, _request: web.Request) -> LoadAnswer:
    return {"server_load": services.num_serving}


async def status(services: Services, _request: web.Request) -> Status:
    return await services.status()


async def metrics(services: Services, request: web.Request) -> web.Response:
    text, content_type = await services.exposition(request.headers.get("Accept", ""))
    return web.Response(body=text, headers={"Content-Type": content_type})
