"""Is what arrived what should have arrived?

On the fake device: exactly equal to the known answer of the same request, or a beginning of it where it was
cut. On the CPU device, where arithmetic depends on the batch, by teacher-forcing a float32 reference
(transformers) over what arrived: each token is the reference's first choice, or less than 1e-4 of the logits'
standard deviation below it. Text must be that of the tokens, and finished answers as long as asked.
"""

from pathlib import Path
from typing import Any, Protocol

from chaoslib.jobs import Choice, Job, Outcome
from semipd.core.sampling import SamplingParams
from semipd.daemon.model.files import ModelFiles
from semipd.devices.fake import expected_tokens

TOLERANCE = 1e-4


class TokenJudge(Protocol):
    method: str

    def why_wrong(self, job: Job, index: int, tokens: list[int]) -> str:
        """Empty when `tokens` are how choice `index` begins."""


class ExactJudge:
    """Of the fake device."""

    method = "exact equality with the known answer"

    def __init__(self, context_tokens: int, vocab_size: int) -> None:
        self._context_tokens = context_tokens
        self._vocab_size = vocab_size

    def why_wrong(self, job: Job, index: int, tokens: list[int]) -> str:
        params = SamplingParams(max_tokens=job.max_tokens, seed=job.seed + index)
        expected = expected_tokens(job.prompt, params, self._context_tokens, self._vocab_size)
        for position, token in enumerate(tokens):
            if position >= len(expected) or token != expected[position]:
                wanted = expected[position] if position < len(expected) else "the end"
                return f"token {position} is {token}, not {wanted}"
        return ""


class ReferenceJudge:
    """Of greedy float32 answers."""

    method = f"teacher-forced float32 reference, gap below {TOLERANCE:g} of the logits' deviation"

    def __init__(self, model_dir: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        # the model is tiny, and several threads on a busy machine wait for each other most of the time
        torch.set_num_threads(1)
        self._torch = torch
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._model: Any = model.eval()
        self.num_deviations = 0

    def why_wrong(self, job: Job, index: int, tokens: list[int]) -> str:
        if not tokens:
            return ""
        torch = self._torch
        with torch.inference_mode():
            logits = self._model(torch.tensor([job.prompt + tokens])).logits[0, len(job.prompt) - 1 : -1]
            chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            gaps: list[float] = ((logits.max(dim=1).values - chosen) / logits.std(dim=1)).tolist()
        self.num_deviations += sum(gap > 0 for gap in gaps)
        wrong = [position for position, gap in enumerate(gaps) if gap > TOLERANCE]
        return f"token {wrong[0]} is {gaps[wrong[0]]:.2g} below the reference's" if wrong else ""


class Judge:
    def __init__(self, tokens: TokenJudge, model_dir: Path) -> None:
        self.method = tokens.method
        self._tokens = tokens
        self._tokenizer = ModelFiles.open(str(model_dir)).tokenizer

    def why_changed(self, outcome: Outcome) -> str:
        """Empty when nothing that arrived is wrong."""
        for index, choice in outcome.choices.items():
            if why := self._why(outcome, index, choice):
                return f"choice {index}: {why}"
        if outcome.fate == "finished" and len(outcome.choices) != outcome.job.num_choices:
            return f"{len(outcome.choices)} of {outcome.job.num_choices} choices"
        return ""

    def _why(self, outcome: Outcome, index: int, choice: Choice) -> str:
        job = outcome.job
        if why := self._tokens.why_wrong(job, index, choice.tokens):
            return why
        if outcome.fate == "finished" and len(choice.tokens) != job.max_tokens:
            return f"{len(choice.tokens)} of {job.max_tokens} tokens"
        if outcome.fate == "finished" and choice.finish_reason != "length":
            return f"finish reason {choice.finish_reason}, not length"
        text = self._text(job, choice.tokens)
        return "" if choice.text == text else f"text {choice.text[-60:]!r} is not {text[-60:]!r}"

    def _text(self, job: Job, tokens: list[int]) -> str:
        """What follows the prompt's text."""
        decode = self._tokenizer.decode
        return decode([*job.prompt, *tokens]).removeprefix(decode(job.prompt))
