"""GET /v1/models, and the same on the socket."""

from aiohttp import web

from semipd.daemon.openai.answer_types import ModelCard, ModelList
from semipd.daemon.state.services import Services


async def list_models(services: Services, _request: web.Request) -> ModelList:
    return {"object": "list", "data": [model_card(services)]}


async def retrieve_model(services: Services, request: web.Request) -> ModelCard:
    services.check_model(request.match_info["model"])
    return model_card(services)


def model_card(services: Services) -> ModelCard:
    """The context's length is known when the engine is ready."""
    ready = services.supervisor.ready
    return {
        "id": services.model_name,
        "object": "model",
        "created": services.started_at_s,
        "owned_by": "semipd",
        "max_model_len": ready.max_model_len if ready else None,
    }
