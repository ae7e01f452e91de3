"""Prompts as token ids, the same for the same seed, with the prefixes a trace says requests share."""

import random

from benchlib.load.workload import PlannedRequest


class PromptMaker:
    """Draws ids uniformly from a vocabulary of `vocab_size`. `block_tokens`: tokens behind one block hash."""

    def __init__(self, vocab_size: int, seed: int, block_tokens: int = 0) -> None:
        self._vocabulary = range(vocab_size)
        self._seed = seed
        self._block_tokens = block_tokens

    def prompt(self, index: int, request: PlannedRequest) -> list[int]:
        """`request.prompt_tokens` ids. Requests without hashes share nothing but chance."""
        if not request.block_hashes:
            return self._draw(f"prompt {index} {request.prompt_tokens}", request.prompt_tokens)
        tokens = list[int]()
        for block_hash in request.block_hashes:
            tokens += self._draw(f"block {block_hash}", self._block_tokens)
        return tokens[: request.prompt_tokens]

    def _draw(self, name: str, count: int) -> list[int]:
        # a string seeds through SHA-512, so it does not depend on PYTHONHASHSEED
        return random.Random(f"{self._seed} {name}").choices(self._vocabulary, k=count)
