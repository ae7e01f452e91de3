"""From tokens to the text a client may see: stop strings, stop tokens, whole characters."""

from collections.abc import Sequence
from typing import Protocol


class TokenDecoder(Protocol):
    def prime(self, prompt: Sequence[int]) -> int:
        """The text to come continues that of `prompt`. Call before the first step.

        Returns how many tokens at the prompt's end have begun a character that the text to come completes.
        """

    def step(self, token_id: int) -> str:
        """Text completed by this token; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is left when no more tokens come."""


class StopStrings:
    """Cuts a text at the first completed stop string, however the text is divided into pieces.

    Text that may still become a stop string is withheld. If several stop strings complete at the
    same character, the longest one is cut. With `keep` the cut comes after it.

    `stop` is the stop string that has appeared; nothing is to be pushed after that.
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        self._matches = [_Match(stop) for stop in stops]
        self._first_characters = frozenset(stop[0] for stop in stops)
        self._keep = keep
        self._withheld = ""
        self.stop: str | None = None

    @property
    def matched(self) -> bool:
        return self.stop is not None

    def push(self, text: str) -> str:
        """Returns the text that is certain now."""
        if not self._withheld and self._first_characters.isdisjoint(text):
            return text
        known = self._withheld + text
        for end, character in enumerate(text, len(self._withheld) + 1):
            complete = [match.stop for match in self._matches if match.push(character)]
            if complete:
                self.stop = max(complete, key=len)
                self._withheld = ""
                return known[: end if self._keep else end - len(self.stop)]
        certain = len(known) - max(match.length for match in self._matches)
        self._withheld = known[certain:]
        return known[:certain]

    def flush(self) -> str:
        text, self._withheld = self._withheld, ""
        for match in self._matches:
            match.length = 0
        return text


class _Match:
    """How much of a stop string the text ends with (Knuth, Morris and Pratt): a character costs the same
    however long the stop string is, and whatever it repeats.

    `_borders[i]`: length of the longest shorter prefix that stop[: i + 1] ends with; known as far as needed.
    """

    __slots__ = ("_borders", "length", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._borders = [0]

    def push(self, character: str) -> bool:
        """Whether the stop string is complete; then nothing is to be pushed any more."""
        self.length = self._after(self.length, character)
        while len(self._borders) < self.length:
            self._borders.append(self._after(self._borders[-1], self.stop[len(self._borders)]))
        return self.length == len(self.stop)

    def _after(self, length: int, character: str) -> int:
        while length and self.stop[length] != character:
            length = self._borders[length - 1]
        return length + (self.stop[length] == character)


class TextStream:
    """One request's tokens to text.

    Stop strings are looked for only in text after the first `min_tokens` tokens. The stop string or stop
    token that ended the request is shown only with `keep_stop`.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        stops: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        min_tokens: int = 0,
        *,
        keep_stop: bool = False,
    ) -> None:
        self._decoder = decoder
        self._stops = StopStrings(stops, keep=keep_stop)
        self._keep_stop = keep_stop
        self._stop_token_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self._held: int | None = None
        self.num_tokens = 0

    @property
    def matched(self) -> bool:
        """A stop string has appeared; the request is over."""
        return self._stops.matched

    @property
    def stop(self) -> str | None:
        return self._stops.stop

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
        if at_stop_token and not self._keep_stop:
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
