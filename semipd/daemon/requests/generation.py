"""Generation for HTTP and socket alike: validate, submit, and give text as it becomes certain."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from semipd.core.errors import SemipdError
from semipd.core.events import FinishReason
from semipd.core.plan import TokenLogprobs
from semipd.core.sampling import MAX_SEED, SamplingParams
from semipd.daemon.access.callers import OPERATOR, Caller
from semipd.daemon.access.classes import Service
from semipd.daemon.access.terms import DEFAULT_SERVICE
from semipd.daemon.history.record import RequestRecord
from semipd.daemon.model.served_model import ServedModel
from semipd.daemon.model.text import TextStream
from semipd.daemon.model.text_bounds import TextBound
from semipd.daemon.model.token_texts import TokenTexts
from semipd.daemon.prompts.prompt import MAX_TOKENIZED, Prompt, Prompts
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.logprob_limits import EXPECTED_TOKENS, AnswerSize, HeldAlternatives
from semipd.daemon.requests.options import EngineLimits, sampling_params
from semipd.daemon.requests.rules import RequestRules, deadline_exceeded
from semipd.daemon.requests.schema import SamplingOptions
from semipd.daemon.requests.table import RequestTable
from semipd.daemon.requests.truncation import truncated

log = logging.getLogger(__name__)

LOGGED_CHARS = 4000
"""Of a prompt, if prompts are logged at all."""

DEFAULT_RULES = RequestRules()


@dataclass(frozen=True, slots=True)
class TokenUsage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """New text and the tokens behind it. While text may still become a stop string, it comes with a
    later piece than its tokens. Only the last piece has a finish reason.

    `logprobs`: one per token, if the request asked. `stop_reason`: the stop string, or the client's own
    stop token, that ended the text.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    stop_reason: str | int | None = None

    @property
    def openai_reason(self) -> Literal["stop", "length"] | None:
        """OpenAI knows no other ends: a cancelled request is an error there."""
        if self.finish_reason == "cancelled" or self.finish_reason == "error":
            raise SemipdError("request_cancelled", "The request was cancelled.")
        return self.finish_reason


@dataclass(frozen=True, slots=True)
class Prepared:
    """A valid request that the engine has not seen. `num_choices`: see access.terms.Terms."""

    prompt: Prompt
    params: SamplingParams
    options: SamplingOptions
    num_choices: int = 1

    @property
    def told(self) -> AnswerSize:
        """Of the prompt and all its choices."""
        options, params = self.options, self.params
        every = params.prompt_logprobs or 0
        per_prompt_token = sum(1 + (every if num < 0 else num) for num in options.prompt_lists)
        repeated = self.num_choices if options.repeats_prompt else 1
        num_tokens = 0 if options.prompt_only else params.max_tokens
        if options.token_limit is None:
            num_tokens = min(num_tokens, EXPECTED_TOKENS)
        per_token = 1 + options.num_logprobs if options.num_logprobs is not None and options.is_whole else 0
        return AnswerSize(
            len(self.prompt.token_ids) * repeated, per_prompt_token, num_tokens * self.num_choices, per_token
        )

    def sibling(self, idx: int) -> "Prepared":
        """Another choice for the same prompt: the next seed. The prompt's log-probabilities are known."""
        seed = (self.params.seed + idx) % (MAX_SEED + 1)
        params = replace(self.params, seed=seed, prompt_logprobs=None)
        return replace(self, params=params, num_choices=0)


class Generation:
    """One admitted request; close it, and what still runs is cancelled."""

    def __init__(
        self, live: LiveRequest, text: TextStream, table: RequestTable, options: SamplingOptions
    ) -> None:
        self._live = live
        self._text = text
        self._table = table
        self._own_stop_ids = options.stop_token_ids or ()
        self._prompt_only = options.prompt_only
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def usage(self) -> TokenUsage:
        """Counts the tokens seen so far, a stop token included."""
        prompt = len(self._live.request.prompt)
        return TokenUsage(prompt, self._text.num_tokens, self._live.cached_tokens)

    @property
    def num_tokens(self) -> int:
        """Generated and seen so far."""
        return self._text.num_tokens

    @property
    def record(self) -> RequestRecord:
        return self._live.record

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs]:
        """Of the prompt tokens from the second on; complete when the first piece is there."""
        return self._live.prompt_logprobs

    def sending(self, *, begins: bool) -> None:
        """A piece is on its way to the client, or has left: what comes meanwhile is bounded."""
        self._live.is_blocked = begins

    def expires_in(self, seconds: float, timeout_ms: int) -> None:
        """From then on it has failed. `timeout_ms` is what the client knows of its deadline."""

        def expire() -> None:
            self._table.fail(self._live, deadline_exceeded(timeout_ms, len(self._live.tokens)))

        self._deadline = asyncio.get_running_loop().call_later(seconds, expire)

    def cancel(self) -> None:
        """End it; the consumer's last piece says so. Does not wait."""
        self._table.cancel(self._live)

    def close(self) -> None:
        """Idempotent."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._table.release(self._live)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Ends after the piece with a finish reason. Raises SemipdError if the request fails."""
        while True:
            await self._live.changed(self._text.num_tokens)
            piece = self.poll()
            assert piece is not None, "changed, yet there is nothing new"
            yield piece
            # Whoever asks for the next piece has sent this one.
            self.sent(piece)
            if piece.finish_reason is not None:
                return

    def poll(self) -> Piece | None:
        """What is new; None if nothing is. Raises SemipdError if the request has failed. Not to be called
        again after a piece with a finish reason."""
        live, text = self._live, self._text
        first = text.num_tokens
        if len(live.tokens) == first and not live.is_over:
            return None
        if live.error is not None:
            if len(live.tokens) == first:
                raise live.error
            live.news.set()  # for the error: what came before it is handed over first
        if self._prompt_only and live.error is None:
            # the one token that was computed is nobody's
            self._table.cancel(live, "length")
            return Piece("", [], "length")
        released = text.push(live.tokens[first:])
        live.num_read = text.num_tokens
        if text.matched:
            self._table.cancel(live, "stop")
            return self._piece(released, first, "stop")
        if live.is_over and live.error is None:
            rest = text.finish(at_stop_token=live.finish_reason == "stop")
            return self._piece(released + rest, first, "stop" if text.matched else live.finish_reason)
        return self._piece(released, first)

    def sent(self, piece: Piece) -> None:
        """The piece has left the daemon."""
        has_text = bool(piece.text) or piece.finish_reason is not None
        self._table.history.sent(self._live.record, len(piece.token_ids), has_text=has_text)

    def _piece(self, text: str, first: int, reason: FinishReason | None = None) -> Piece:
        live, end = self._live, self._text.num_tokens
        token = live.stop_token if reason == "stop" and live.stop_token in self._own_stop_ids else None
        stop_reason = self._text.stop if self._text.matched else token
        return Piece(text, live.tokens[first:end], reason, live.logprobs[first:end], stop_reason)


class GenerationService:
    """Opens generations on one engine with one model."""

    def __init__(self, model: ServedModel, table: RequestTable, rules: RequestRules = DEFAULT_RULES) -> None:
        self.table = table
        self.rules = rules
        self.model = model
        self.texts = TokenTexts(model.tokenizer)
        self.prompts = Prompts(model, rules.limits)
        self.alternatives = HeldAlternatives()
        self._limits: EngineLimits | None = None

    def engine_is_ready(self, limits: EngineLimits) -> None:
        self._limits = limits
        self.table.history.block_size = limits.block_size

    @property
    def limits(self) -> EngineLimits:
        """Raises SemipdError(`engine_not_ready`)."""
        if self._limits is None:
            raise SemipdError(
                "engine_not_ready", "The engine is still starting.", "Send the request again later."
            )
        return self._limits

    def prompt_bound(self, options: SamplingOptions) -> TextBound:
        """Raises SemipdError(`engine_not_ready`)."""
        if options.truncation:
            return self.text_bound
        return TextBound(self.limits.max_model_len, "the context", is_checked_later=True)

    @property
    def text_bound(self) -> TextBound:
        """Of texts that need not fit into the context. Raises SemipdError(`engine_not_ready`)."""
        most = max(self.limits.max_model_len, MAX_TOKENIZED)
        return TextBound(most, "the limit of a text", code="request_too_large")

    @asynccontextmanager
    async def preparing(self, options: SamplingOptions, arrival_ns: int) -> AsyncGenerator[None, None]:
        """For what is done before a request is admitted, its deadline holds too. Raises
        SemipdError(`deadline_exceeded`)."""
        timeout_ms = self.rules.deadline_ms(options.timeout_ms)
        left_s = None if timeout_ms is None else timeout_ms / 1e3 - _age_s(arrival_ns)
        scope = asyncio.timeout(left_s)
        try:
            async with scope:
                yield
        except TimeoutError as error:
            if timeout_ms is None or not scope.expired():
                raise
            raise deadline_exceeded(timeout_ms, 0) from error

    def prepare(
        self, prompt: Prompt, options: SamplingOptions, default_max_tokens: int | None = None
    ) -> Prepared:
        """`default_max_tokens` applies when the options name none; None: as many as fit.

        Raises SemipdError: `engine_not_ready`, `empty_prompt`, `invalid_value`, `context_length_exceeded`.
        """
        prompt = truncated(prompt, options, default_max_tokens, self.limits)
        params = sampling_params(options, prompt.token_ids, default_max_tokens, self.model, self.limits)
        return Prepared(prompt, params, options, options.num_choices)

    def admit(
        self,
        request_id: str,
        prepared: Prepared,
        arrival_ns: int | None = None,
        news: asyncio.Event | None = None,
        caller: Caller = OPERATOR,
        service: Service = DEFAULT_SERVICE,
    ) -> Generation:
        """Hand the request to the engine; who asks for it closes the generation. `news` is set when it has
        changed. Raises `deadline_exceeded`, and what RequestTable.admit raises."""
        prompt, params, options = prepared.prompt, prepared.params, prepared.options
        timeout_ms, left_s = self.rules.deadline_ms(options.timeout_ms), 0.0
        if timeout_ms is not None:
            left_s = timeout_ms / 1e3 - _age_s(arrival_ns)
            if left_s <= 0:
                raise deadline_exceeded(timeout_ms, 0)
        namespace = self.rules.namespace(caller, options.cache_salt)
        terms = self.rules.terms(caller, service, params, prepared.num_choices)
        text = self._text_stream(prepared)
        live = self.table.admit(request_id, prompt.token_ids, params, namespace, arrival_ns, news, terms)
        generation = Generation(live, text, self.table, options)
        if timeout_ms is not None:
            generation.expires_in(left_s, timeout_ms)
        if self.rules.log_prompts:
            given = prompt.text if prompt.text is not None else prompt.token_ids
            shown = repr(given[:LOGGED_CHARS])[:LOGGED_CHARS]
            log.info("prompt", extra={"request_id": request_id, "prompt": shown})
        return generation

    def _text_stream(self, prepared: Prepared) -> TextStream:
        # The engine gets no stop strings: they are found here.
        options, params = prepared.options, prepared.params
        skip_special = options.skip_special_tokens is not False
        decoder = self.model.tokenizer.stream_decoder(skip_special_tokens=skip_special)
        if not prepared.prompt.opens_text:
            decoder.prime(prepared.prompt.token_ids)
        return TextStream(
            decoder,
            options.stop or (),
            params.stop_token_ids,
            params.min_tokens,
            keep_stop=bool(options.include_stop_str_in_output),
        )


def _age_s(arrival_ns: int | None) -> float:
    return 0.0 if arrival_ns is None else (time.monotonic_ns() - arrival_ns) / 1e9
