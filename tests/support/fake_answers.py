"""What the fake device answers, computed from the outside: the oracle for completions and chat."""

from collections.abc import Sequence
from dataclasses import dataclass

from support.fake_model import CONTEXT_TOKENS

from semipd.core.sampling import SamplingParams
from semipd.daemon.model.files import ModelFiles
from semipd.devices.fake import expected_tokens


@dataclass(frozen=True)
class FakeAnswers:
    model: ModelFiles

    def tokens(
        self, prompt: str | Sequence[int], seed: int, max_tokens: int = 16, *, ignore_eos: bool = False
    ) -> list[int]:
        """The tokens of one choice, an end-of-sequence token included."""
        stop = () if ignore_eos else self.model.eos_token_ids
        params = SamplingParams(max_tokens=max_tokens, seed=seed, stop_token_ids=tuple(stop))
        vocab_size = self.model.tokenizer.vocab_size
        return expected_tokens(self.ids(prompt), params, CONTEXT_TOKENS, vocab_size)

    def text(self, prompt: str | Sequence[int], seed: int, max_tokens: int = 16) -> str:
        """What follows the prompt's text."""
        return self.continued(prompt, self.tokens(prompt, seed, max_tokens))

    def continued(self, prompt: str | Sequence[int], tokens: Sequence[int]) -> str:
        decode, ids = self.model.tokenizer.decode, self.ids(prompt)
        return decode([*ids, *tokens]).removeprefix(decode(ids))

    def ids(self, prompt: str | Sequence[int]) -> list[int]:
        return self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
