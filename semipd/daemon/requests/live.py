"""One request from its admission until its client has the last token, whichever engine works on it."""

import asyncio
from dataclasses import replace

from semipd.core.errors import SemipdError
from semipd.core.events import FinishReason
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request
from semipd.daemon.history.record import RequestRecord


class LiveRequest:
    """One request in the table. `tokens` only grows; one consumer reads it at its own pace.

    `news` is set whenever something has changed; requests that one consumer reads together share it.
    `logprobs` has an entry per token if the request asked for them; `prompt_logprobs` likewise has one
    per prompt token but the first, all of them before the first token. `num_read`: tokens the consumer has
    taken. While it waits for its client to take them (`is_blocked`), it may leave `max_unread` behind (0: any
    number).
    """

    __slots__ = (
        "cached_tokens",
        "error",
        "finish_reason",
        "is_blocked",
        "logprobs",
        "max_unread",
        "news",
        "num_read",
        "num_submissions",
        "prompt_logprobs",
        "record",
        "request",
        "stop_token",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        record: RequestRecord,
        news: asyncio.Event | None = None,
        max_unread: int = 0,
    ) -> None:
        self.request = request
        self.max_unread = max_unread
        self.num_read = 0
        self.is_blocked = False
        self.num_submissions = 0
        self.record = record
        self.news = news or asyncio.Event()
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop_token: int | None = None
        self.error: SemipdError | None = None

    @property
    def is_over(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_neglected(self) -> bool:
        """Its client leaves too much unread. A busy daemon may have as many tokens at once, of a client that
        waits for them."""
        return self.is_blocked and 0 < self.max_unread < len(self.tokens) - self.num_read

    def add(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.news.set()

    def finish(self, reason: FinishReason, error: SemipdError | None = None) -> None:
        """The first end counts; later ones are ignored."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.error = error
            self.news.set()

    def submission(self) -> Request:
        """What an engine needs to produce the rest of it, and only the rest."""
        request, params = self.request, self.request.params
        if params.prompt_logprobs is not None and self._has_prompt_logprobs:
            params = replace(params, prompt_logprobs=None)
        return replace(request, params=params, emitted=tuple(self.tokens))

    def lose_engine(self) -> None:
        """Its engine is dead. Its end may have been among what got lost, although its last token was not."""
        params = self.request.params
        if not self._has_prompt_logprobs:
            # nobody has read them: they count from the first token on
            self.prompt_logprobs.clear()
        if not self.tokens or self.is_over:
            return
        if self.tokens[-1] in params.stop_token_ids and len(self.tokens) >= params.min_tokens:
            self.stop_token = self.tokens[-1]
            self.finish("stop")
        elif len(self.tokens) >= params.max_tokens:
            self.finish("length")

    @property
    def _has_prompt_logprobs(self) -> bool:
        return bool(self.tokens) or len(self.prompt_logprobs) == len(self.request.prompt) - 1

    async def changed(self, num_seen: int) -> None:
        """Wait until there are more than `num_seen` tokens or the request is over."""
        while len(self.tokens) <= num_seen and not self.is_over:
            self.news.clear()
            await self.news.wait()
