"""The routes of OpenAI's interface, and those beside it that clients ask for."""

from aiohttp import web

from semipd.daemon.openai.answer_types import ModelCard, ModelList
from semipd.daemon.openai.chat import Chat
from semipd.daemon.openai.completions import Completions
from semipd.daemon.openai.logprobs import TokenTexts
from semipd.daemon.openai.tokenize import Tokenize
from semipd.daemon.state.services import Services


def add_routes(app: web.Application, services: Services) -> None:
    texts = TokenTexts(services.generation.model.tokenizer)
    tokenize = Tokenize(services)
    models = _Models(services)
    app.router.add_post("/v1/completions", Completions(services, texts).handle)
    app.router.add_post("/v1/chat/completions", Chat(services, texts).handle)
    app.router.add_get("/v1/models", models.all)
    app.router.add_get("/v1/models/{name:.+}", models.one)
    app.router.add_post("/tokenize", tokenize.tokenize)
    app.router.add_post("/detokenize", tokenize.detokenize)
    app.router.add_get("/tokenizer_info", tokenize.info)


class _Models:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def all(self, _request: web.Request) -> web.Response:
        shown: ModelList = {"object": "list", "data": [model_card(self._services)]}
        return web.json_response(shown)

    async def one(self, request: web.Request) -> web.Response:
        self._services.check_model(request.match_info["name"])
        return web.json_response(model_card(self._services))


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
