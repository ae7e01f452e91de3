"""The demo model's text: its tokenizer, what is held out, and the rows it is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

EOS = "<|endoftext|>"
EOS_ID = 0
ROW_LENGTHS_TOKENS = (256, 512, 1024, 2048)
ROW_LENGTH_WEIGHTS = (0.4, 0.3, 0.15, 0.15)


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Byte-level BPE: all 256 bytes are in the vocabulary, so any UTF-8 text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.token_to_id(EOS) == EOS_ID
    return tokenizer


@dataclass(frozen=True)
class Corpus:
    """One text, cut between two speeches: the tokenizer and the weights see only the first part."""

    tokenizer: Tokenizer
    train_ids: Tensor
    validation_ids: Tensor
    validation_bytes: int

    @classmethod
    def from_text(cls, text: str, vocab_size: int, validation_frac: float) -> Corpus:
        cut = text.index("\n\n", int(len(text) * (1 - validation_frac))) + 2
        tokenizer = train_tokenizer(text[:cut], vocab_size)
        train_ids, validation_ids = (
            torch.tensor(tokenizer.encode(part).ids) for part in (text[:cut], text[cut:])
        )
        return cls(tokenizer, train_ids, validation_ids, len(text[cut:].encode()))


class Passages:
    """Training rows drawn from one long text.

    A row starts anywhere in the text. When its passage ends (always at the end of a speech),
    the end-of-text token and another passage, begun at a speech, follow.
    """

    def __init__(self, corpus: Corpus, seed: int) -> None:
        self.ids = corpus.train_ids
        newline = self.ids == corpus.tokenizer.encode("\n").ids[0]
        self.starts = (newline[:-3] & newline[1:-2]).nonzero().flatten() + 2
        self.rng = torch.Generator().manual_seed(seed)

    def batch(self, batch_tokens: int) -> Tensor:
        """Ids [rows, length + 1], with rows * length about `batch_tokens`."""
        weights = torch.tensor(ROW_LENGTH_WEIGHTS)
        length = ROW_LENGTHS_TOKENS[int(torch.multinomial(weights, 1, generator=self.rng))]
        return torch.stack([self._row(length + 1) for _ in range(max(1, batch_tokens // length))])

    def _row(self, length: int) -> Tensor:
        start, parts, have = self._below(len(self.ids) - 1), [], 0
        while have < length:
            passage = self.ids[start : self._passage_end(start)]
            parts += [passage, torch.tensor([EOS_ID])]
            have += len(passage) + 1
            start = int(self.starts[self._below(len(self.starts))])
        return torch.cat(parts)[:length]

    def _passage_end(self, start: int) -> int:
        """The first end of a speech after a log-uniform length of 128 to 4096 tokens."""
        wanted = start + int(128 * 32 ** torch.rand(1, generator=self.rng).item())
        speech_idx = int(torch.searchsorted(self.starts, wanted))
        return int(self.starts[speech_idx]) if speech_idx < len(self.starts) else len(self.ids)

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.rng))
