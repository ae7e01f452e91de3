"""Log-probabilities in the shapes of the two OpenAI endpoints, and vLLM's for prompts."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from semipd.core.plan import TokenLogprobs
from semipd.daemon.model.text import TokenDecoder
from semipd.daemon.model.token_texts import TokenTexts
from semipd.daemon.openai.answer_types import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from semipd.daemon.requests.schema import WHOLE_VOCABULARY
from semipd.daemon.web.json_text import Later

INLINE_LOGPROBS = 2000
"""More log-probabilities of one answer are formatted in a thread, and written a part at a time: this many
take about two milliseconds."""

LOWEST = -9999.0
"""OpenAI's number for "very unlikely"; JSON has no infinity."""


class CompletionWriter:
    """One choice's tokens, pushed in order; offsets count characters of the choice's text.

    `decoder` must be the choice's own: offsets follow what it gives out.
    """

    def __init__(
        self, texts: TokenTexts, decoder: TokenDecoder, num_alternatives: int, *, as_ids: bool
    ) -> None:
        self._texts = texts
        self._decoder = decoder
        self._num_alternatives = num_alternatives
        self._as_ids = as_ids
        self._offset = 0

    def prompt(
        self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs], text: str, *, is_given: bool = False
    ) -> CompletionLogprobs:
        """The echoed prompt: its first token has no prediction. `text` is what is echoed; `is_given`: as the
        client wrote it, without the special tokens that were added to it."""
        offsets = self._prompt_offsets(token_ids, text if is_given else None)
        self._offset = len(text)
        return {
            "tokens": [self._text(token_id) for token_id in token_ids],
            "token_logprobs": [None, *(_finite(entry.logprob) for entry in entries)],
            "top_logprobs": [None, *(self._top(entry) for entry in entries)],
            "text_offset": [min(offset, len(text)) for offset in offsets],
        }

    def tokens(self, entries: Sequence[TokenLogprobs]) -> CompletionLogprobs:
        return {
            "tokens": [self._text(entry.token_id) for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [self._top(entry) for entry in entries],
            "text_offset": self._offsets([entry.token_id for entry in entries]),
        }

    def _text(self, token_id: int) -> str:
        return self._texts.text(token_id, as_ids=self._as_ids)

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The token itself is always there. Of two tokens with one spelling the likelier is shown."""
        found: dict[str, float] = {}
        for token_id, logprob in entry.top[: self._num_alternatives]:
            found.setdefault(self._text(token_id), _finite(logprob))
        found.setdefault(self._text(entry.token_id), _finite(entry.logprob))
        return found

    def _prompt_offsets(self, token_ids: Sequence[int], given: str | None) -> list[int]:
        """A special token that does not stand in a given text has no width."""
        decoder = self._texts.tokenizer.stream_decoder(skip_special_tokens=False)
        offsets, offset = list[int](), 0
        for token_id in token_ids:
            place = offset
            if given is not None and self._texts.is_special(token_id):
                place, offset = self._special_in(given, token_id, offset)
            else:
                offset += len(decoder.step(token_id))
            offsets.append(place)
        return offsets

    def _special_in(self, given: str, token_id: int, offset: int) -> tuple[int, int]:
        """Where a special token begins and ends in a given text. Of the text before it, decoding may have
        made a space more."""
        spelled = self._texts.text(token_id)
        found = given.rfind(spelled, max(offset - 1, 0), offset + len(spelled))
        return (offset, offset) if found < 0 else (found, found + len(spelled))

    def _offsets(self, token_ids: Sequence[int]) -> list[int]:
        offsets: list[int] = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._decoder.step(token_id))
        return offsets


def join_completion_logprobs(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def chat_logprobs(entries: Sequence[TokenLogprobs], texts: TokenTexts, *, as_ids: bool) -> ChatLogprobs:
    def top(token_id: int, logprob: float) -> TopLogprob:
        token = texts.lossy_text(token_id, as_ids=as_ids)
        return {"token": token, "logprob": _finite(logprob), "bytes": list(texts.bytes_of(token_id))}

    def token(entry: TokenLogprobs) -> TokenLogprob:
        alternatives = [top(token_id, logprob) for token_id, logprob in entry.top]
        return {**top(entry.token_id, entry.logprob), "top_logprobs": alternatives}

    return {"content": [token(entry) for entry in entries], "refusal": None}


def prompt_logprobs(
    entries: Sequence[TokenLogprobs], num_alternatives: int, texts: TokenTexts
) -> PromptLogprobs:
    """vLLM's field: per prompt token a map from token id to its log-probability, null for the first."""

    def shown(token_id: int, logprob: float, rank: int) -> PromptLogprob:
        decoded = texts.lossy_text(token_id)
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": decoded}

    def by_id(entry: TokenLogprobs) -> dict[str, PromptLogprob]:
        """The prompt's own token first; among the alternatives its rank is its place."""
        found = {str(entry.token_id): shown(entry.token_id, entry.logprob, entry.rank)}
        top = entry.top if num_alternatives == WHOLE_VOCABULARY else entry.top[:num_alternatives]
        for rank, (token_id, logprob) in enumerate(top, 1):
            found[str(token_id)] = shown(token_id, logprob, rank)
        return found

    def row(entry: TokenLogprobs) -> dict[str, PromptLogprob]:
        is_large = len(entry.top) > INLINE_LOGPROBS
        return cast(dict[str, PromptLogprob], Later(partial(by_id, entry))) if is_large else by_id(entry)

    return [None, *map(row, entries)]


def _finite(logprob: float) -> float:
    """JSON and OpenAI's clients know numbers only. Not `max` and `min`: those let NaN through."""
    return logprob if LOWEST < logprob <= 0.0 else 0.0 if logprob > 0.0 else LOWEST
