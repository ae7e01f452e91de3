"""DESIGN section 3's meaning of "identical": teacher-force an fp32 reference over our output.

At each position our greedy token is the reference's, or its gap to the top logit is below the tolerance
(in units of the logits' standard deviation). Positions decided by the tolerance are counted.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 5e-2


@dataclass
class Verdict:
    num_tokens: int = 0
    num_deviations: int = 0
    worst_gap: float = 0.0

    def __add__(self, other: "Verdict") -> "Verdict":
        return Verdict(
            self.num_tokens + other.num_tokens,
            self.num_deviations + other.num_deviations,
            max(self.worst_gap, other.worst_gap),
        )


class GreedyOracle:
    """The reference is transformers in fp32 on the same checkpoint."""

    def __init__(self, model: Path, tolerance: float = FP32_TOLERANCE) -> None:
        """`model`: a folder or a file of GGUF."""
        from transformers import AutoModelForCausalLM  # slow to import, and every worker collects its users

        folder, name = (model, None) if model.is_dir() else (model.parent, model.name)
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        self.model = read.eval()
        self.tolerance = tolerance

    @torch.inference_mode()
    def judge(self, prompt: list[int], output: list[int]) -> Verdict:
        """Raises AssertionError with position and gap where the output is not the reference's."""
        logits = self.model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        gaps = (logits.max(dim=1).values - chosen) / logits.std(dim=1)
        for position, gap in enumerate(gaps.tolist()):
            assert gap <= self.tolerance, (
                f"output token {position} is {gap:.2e} below the reference's top logit"
            )
        deviations = int((logits.argmax(dim=1) != torch.tensor(output)).sum())
        return Verdict(len(output), deviations, float(gaps.max()))
