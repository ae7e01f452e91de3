"""From tokens to the text a client may see: stop strings, stop tokens, whole characters."""

from collections.abc import Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    def step(self, token_id: int) -> str:
        """Text completed by this token; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is left when no more tokens come."""


class StopStrings:
    """Cuts a text at the first completed stop string, however the text is divided into pieces.

    Text that may still become a stop string is withheld. If several stop strings complete at the
    same character, the longest one is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._withheld = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Returns the text that is certain now. Sets `matched`; nothing is to be pushed after that."""
        if not self._stops:
            return text
        text = self._withheld + text
        cut = self._first_match(text)
        if cut is not None:
            self.matched = True
            self._withheld = ""
            return text[:cut]
        keep = self._undecided(text)
        self._withheld = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        text, self._withheld = self._withheld, ""
        return text

    def _first_match(self, text: str) -> int | None:
        """Start of the stop string that completes first."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


class TextStream:
    """One request's tokens to text. Text of a stop token that ended the request is never shown.

    Stop strings are looked for only in text after the first `min_tokens` tokens.
    """

    def __init__(
        self,
        decoder: StreamDecoder,
        stops: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stops)
        self._stop_token_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self._held: int | None = None
        self.num_tokens = 0

    @property
    def matched(self) -> bool:
        """A stop string has appeared; the request is over."""
        return self._stops.matched

    def push(self, tokens: Sequence[int]) -> str:
        """Text that became certain. Stops counting `num_tokens` at the token that completed a stop string."""
        pieces: list[str] = []
        for token in tokens:
            self.num_tokens += 1
            pieces.append(self._release_held())
            if token in self._stop_token_ids:
                self._held = token
            else:
                pieces.append(self._decode(token))
            if self.matched:
                break
        return "".join(pieces)

    def finish(self, *, at_stop_token: bool) -> str:
        """The rest of the text, when no more tokens come and no stop string appeared."""
        if at_stop_token:
            self._held = None
        text = self._release_held() + self._stops.push(self._decoder.flush())
        return text if self.matched else text + self._stops.flush()

    def _release_held(self) -> str:
        """A stop token that did not end the request is a token like any other."""
        if self._held is None:
            return ""
        token, self._held = self._held, None
        return self._decode(token)

    def _decode(self, token: int) -> str:
        text = self._decoder.step(token)
        if not text:
            return ""
        return text if self.num_tokens <= self._min_tokens else self._stops.push(text)
