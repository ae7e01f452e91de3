"""The policy `predictive`: look at the work at hand, predict it under every split, choose.

1. Merged steps on the whole device, as long as they keep the running streams' gaps: they read the weights
   once for both phases. Of the budgets that do, the one that makes the fewest prompts late; among equals the
   one that leaves most room to the target nearest to being missed, and with ample room the fastest. With
   loose targets for gaps that is a large one; with tight ones a small one, as long as prompts have time.
2. Divided, when larger merged steps would help prompts but break gaps, and a division loses fewer requests
   and computes the queue clearly faster than the merged steps that keep them. Without that second condition
   a division would save a prompt now and cost work that those to come will miss: decode falls behind.
3. When no merged step keeps the gaps, whatever loses the fewest requests, and then leaves most room.

Hysteresis: merging needs twice the margin to begin; a division must be faster by `CLEARLY_FASTER` to begin,
and faster at all to stay; in step 3 the present way is given up only for a clearly better one. Predictions
are believed only near what was tried: a lane gets at most one granule less than the least it has run on.
"""

from collections.abc import Sequence

from semipd.core.slo import Slo
from semipd.core.split import PolicyName, Split
from semipd.partition.interface import Decision, Snapshot
from semipd.partition.policies.forecast import (
    Outlook,
    merged_outlook,
    prefill_steps,
    split_outlook,
)

MARGIN_FRAC = 0.1
"""Kept free below the targets for gaps: predictions of a step are off by a few percent."""

CLEARLY_LESS = 0.9
"""Of two ways that lose equally many requests, the new one is taken if its pressure is less than this
fraction of the present one's."""

CLEARLY_FASTER = 0.6
"""A division is worth it when it computes the known queue in less than this fraction of the time that merged
steps need which keep the gaps. Simulated with 0.8 and 0.9, Llama-3-70B lost more requests than it saved."""

ROOM_FRAC = 0.25
"""While no more than this share of any target is needed, none is at stake: the fastest way is taken."""

SMALL_TOKENS = 256
"""Budgets below it fill no tile row of most matrix products and are used only when this one breaks gaps."""

MERGE_SIZES = (64, 128, SMALL_TOKENS, 512, 1024, 2048, 4096, 8192)
"""Tokens. Powers of two fill whole tiles and waves: on an H200 a step of 512 tokens computes 46 tokens per
millisecond, one of 640 only 40 (`devices/sim/cost.py`), which models linear in tokens do not see."""


class PredictivePolicy:
    name: PolicyName = "predictive"
    per_window = False

    def decide(self, snapshot: Snapshot, slo: Slo) -> Decision:
        s = snapshot
        if not s.times.confident:
            return Decision(s.start, "step times are not known yet: the configured split")
        merged = [merged_outlook(s, slo, tokens) for tokens in merge_sizes(s)]
        keeping = _keeping_gaps(s, merged)
        if not keeping:
            return _least_loss(s, slo, [*_divided(s, slo), *merged])
        best = min(keeping, key=lambda way: (way.num_late, *_rank(way)[1:]))
        if best.num_late and _fastest(merged) not in keeping:
            divided = _clearly_better(s, slo, best, _fastest(keeping))
            if divided is not None:
                return _decision(divided, _divided_reason(divided, best))
        return _decision(best, _merged_reason(slo, best))


def merge_sizes(s: Snapshot) -> list[int]:
    """Token budgets of merged steps worth a look, rising; none when merging is not allowed."""
    sizes = {min(tokens, s.merge_tokens) for tokens in MERGE_SIZES}
    return sorted(tokens for tokens in sizes if tokens > s.num_decodes)


def _keeping_gaps(s: Snapshot, merged: Sequence[Outlook]) -> list[Outlook]:
    margin = MARGIN_FRAC if s.merged_tokens else 2 * MARGIN_FRAC
    keeping = [way for way in merged if way.gap_pressure <= 1 - margin]
    large = [way for way in keeping if way.merged_tokens >= SMALL_TOKENS]
    return large or keeping


def _stake(way: Outlook) -> float:
    return max(way.pressure, ROOM_FRAC)


def _rank(way: Outlook) -> tuple[int, float, float]:
    return way.loss, _stake(way), way.drain_ms


def _fastest(ways: Sequence[Outlook]) -> Outlook:
    return min(ways, key=lambda way: (way.num_late, way.drain_ms))


def _divided(s: Snapshot, slo: Slo) -> list[Outlook]:
    steps = prefill_steps(s.prompts, s.chunk_tokens)
    return [split_outlook(s, slo, split, steps) for split in _believable(s)]


def _clearly_better(s: Snapshot, slo: Slo, best: Outlook, fastest: Outlook) -> Outlook | None:
    """The division that loses the fewest requests, if it loses fewer than `best` and is faster than merged
    steps that keep the gaps."""
    limit_ms = fastest.drain_ms * (CLEARLY_FASTER if s.merged_tokens else 1.0)
    ways = [way for way in _divided(s, slo) if way.drain_ms <= limit_ms]
    found = min(ways, key=_rank, default=None)
    return found if found is not None and found.loss < best.loss else None


def _least_loss(s: Snapshot, slo: Slo, outlooks: Sequence[Outlook]) -> Decision:
    best = min(outlooks, key=_rank)
    present = (s.current, s.merged_tokens)
    current = next((o for o in outlooks if (o.split, o.merged_tokens) == present), best)
    if current.loss == best.loss and _stake(best) >= CLEARLY_LESS * _stake(current):
        best = current
    return _decision(best, _loss_reason(s, slo, best, current))


def _believable(s: Snapshot) -> list[Split]:
    """Splits at most one granule beyond what the lanes have run on, by rising decode share."""
    splits = s.table.splits
    decode = s.times.smallest_tried("decode") or s.current.decode_units
    prefill = s.times.smallest_tried("prefill") or s.current.prefill_units
    first = sum(split.decode_units < decode for split in splits) - 1
    last = sum(split.prefill_units >= prefill for split in splits)
    return [split for i, split in enumerate(splits) if first <= i <= last or split == s.current]


def _decision(found: Outlook, reason: str) -> Decision:
    return Decision(found.split, reason, found.merged_tokens, found.ttft_ms, found.step_ms, found.watched)


def _merged_reason(slo: Slo, found: Outlook) -> str:
    late = f", {found.num_late} prompts late" if found.num_late else ""
    return (
        f"merged steps of {found.merged_tokens} tokens take {found.step_ms:.1f} ms: streams use "
        f"{found.gap_pressure:.0%} of their time, prompts {found.prompt_pressure:.0%}"
        f"{_ttft_clause(slo, found)}{late}: no split needed"
    )


def _divided_reason(found: Outlook, merged: Outlook) -> str:
    return (
        f"larger merged steps would break the gaps: {found.name} computes the queue in {found.drain_ms:.0f} "
        f"ms and loses {found.loss}, merged steps of {merged.merged_tokens} tokens {merged.drain_ms:.0f} ms "
        f"and {merged.loss}; decode {found.step_ms:.1f} ms: streams use {found.gap_pressure:.0%} of their "
        "time"
    )


def _loss_reason(s: Snapshot, slo: Slo, best: Outlook, current: Outlook) -> str:
    at_stake = len(s.prompts) + s.num_decodes
    other = "" if best is current else f"; {current.name} would lose {current.loss}"
    return (
        f"no merged step keeps the gaps: {best.name} loses {best.loss} of {at_stake} requests "
        f"({best.num_late} prompts late{_ttft_clause(slo, best)}, decode {best.step_ms:.1f} ms: streams use "
        f"{best.gap_pressure:.0%} of their time){other}"
    )


def _ttft_clause(slo: Slo, found: Outlook) -> str:
    return "" if found.ttft_ms is None else f", TTFT {found.ttft_ms:.0f} of {slo.ttft_ms:g} ms"
