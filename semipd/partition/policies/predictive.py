"""The policy `predictive`: look at the work at hand, predict it under every split, choose.

1. If merged steps on the whole device keep TPOT with a margin, do not split: they read the weights once for
   both phases. Take the smallest budget whose prompts are in time with a margin (they wait less for each
   other, and TPOT is lowest), or else the one that makes the fewest late. A split might save a prompt more
   now, but costs work that those to come will miss: 79 % instead of 93 % in time at 20 requests/s of
   docs/policies.md's azure-conv, 500/25 ms.
2. Else the smallest decode share whose step meets the TPOT target with a margin, if the waiting prompts
   then meet TTFT: whatever decode does not need makes prompts start sooner.
3. Else whatever loses the fewest requests, split or merged; among equals what misses the targets least.

Hysteresis: to begin, merging must keep TPOT with twice the margin, and so must the smallest decode share,
else one granule more is left to it; in step 3 the present way is given up only for a clearly better one.
Predictions are believed only near what was tried: a lane gets at most one granule less than the least it has
run on.
"""

from collections.abc import Sequence

from semipd.core.slo import Slo
from semipd.core.split import PolicyName, Split
from semipd.partition.interface import Decision, Snapshot
from semipd.partition.policies.forecast import (
    Outlook,
    PrefillSteps,
    decode_step_ms,
    merged_outlook,
    prefill_steps,
    split_outlook,
    split_tpot_ms,
)

MARGIN_FRAC = 0.1
"""Kept free below the TPOT target: predictions of a step are off by a few percent."""

CLEARLY_LESS = 0.9
"""Of two ways that lose equally many requests, the new one is taken if it exceeds the targets by less than
this fraction of what the present one does."""

MERGE_SIZES = (256, 512, 1024, 2048, 4096, 8192)
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
        safe = _keeping_tpot(s, slo, merged)
        if safe:
            best = next((way for way in safe if not way.num_close), None)
            best = best or min(safe, key=lambda way: (way.num_late, way.excess))
            return _decision(best, _merged_reason(slo, best))
        steps = prefill_steps(s.prompts, s.chunk_tokens)
        candidates = _believable(s)
        sufficient = _smallest_sufficient(s, slo, candidates)
        if sufficient is not None:
            found = split_outlook(s, slo, sufficient, steps)
            if not found.num_late:
                return _decision(found, _sufficient_reason(s, slo, found))
        ways = [split_outlook(s, slo, split, steps) for split in _contenders(s, slo, candidates, steps)]
        ways += merged
        return _least_loss(s, slo, ways)


def merge_sizes(s: Snapshot) -> list[int]:
    """Token budgets of merged steps worth a look, rising; none when merging is not allowed."""
    sizes = {min(tokens, s.merge_tokens) for tokens in MERGE_SIZES}
    return sorted(tokens for tokens in sizes if tokens > s.num_decodes)


def _keeping_tpot(s: Snapshot, slo: Slo, merged: Sequence[Outlook]) -> list[Outlook]:
    margin = MARGIN_FRAC if s.merged_tokens else 2 * MARGIN_FRAC
    return [way for way in merged if way.tpot_ms <= slo.tpot_ms * (1 - margin)]


def _contenders(
    s: Snapshot, slo: Slo, candidates: Sequence[Split], steps: Sequence[PrefillSteps]
) -> list[Split]:
    """The splits worth a walk of the queue. With a larger decode share prompts only become later, so the
    fewest losses are at the smallest share of all or at the smallest that keeps TPOT; the neighbours of the
    present one and the largest are for the ties that are left."""
    here, last = candidates.index(s.current), len(candidates) - 1
    tpots_ms = [split_tpot_ms(s, split, steps) for split in candidates]
    enough = _first(tpots_ms, slo.tpot_ms)
    picked = {0, last, here, max(here - 1, 0), min(here + 1, last)} | (
        {enough} if enough is not None else set()
    )
    return [candidates[idx] for idx in sorted(picked)]


def _least_loss(s: Snapshot, slo: Slo, outlooks: Sequence[Outlook]) -> Decision:
    best = min(outlooks, key=lambda o: (o.loss, o.excess, o.step_ms))
    present = (s.current, s.merged_tokens)
    current = next((o for o in outlooks if (o.split, o.merged_tokens) == present), best)
    if current.loss == best.loss and best.excess >= CLEARLY_LESS * current.excess:
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


def _smallest_sufficient(s: Snapshot, slo: Slo, candidates: Sequence[Split]) -> Split | None:
    """The smallest decode share that keeps TPOT with a margin, or one granule more: on the way down if that
    share keeps TPOT less than twice the margin, and as long as it is the present one."""
    steps_ms = [decode_step_ms(s, split) for split in candidates]
    enough = _first(steps_ms, slo.tpot_ms * (1 - MARGIN_FRAC))
    if enough is None:
        return None
    ample = _first(steps_ms, slo.tpot_ms * (1 - 2 * MARGIN_FRAC))
    above = min(enough + 1, len(candidates) - 1) if ample is None else min(enough + 1, ample)
    return candidates[min(max(candidates.index(s.current), enough), above)]


def _first(steps_ms: Sequence[float], limit_ms: float) -> int | None:
    return next((idx for idx, step_ms in enumerate(steps_ms) if step_ms <= limit_ms), None)


def _decision(found: Outlook, reason: str) -> Decision:
    return Decision(found.split, reason, found.merged_tokens, found.ttft_ms, found.step_ms, found.watched)


def _merged_reason(slo: Slo, found: Outlook) -> str:
    return (
        f"a merged step of {found.merged_tokens} tokens takes {found.step_ms:.1f} ms <= {slo.tpot_ms:g} ms"
        f"{_ttft_clause(slo, found)}: no split needed"
    )


def _sufficient_reason(s: Snapshot, slo: Slo, found: Outlook) -> str:
    unit, limit_ms = s.table.unit, slo.tpot_ms * (1 - MARGIN_FRAC)
    more = found.split.decode_units - s.current.decode_units
    before_ms = decode_step_ms(s, s.current)
    target = f"{limit_ms:.1f} ms ({slo.tpot_ms:g} less {MARGIN_FRAC:.0%})"
    if more > 0:
        return (
            f"decode {before_ms:.1f} ms > {target} at {s.current.decode_units} {unit}s: +{more} {unit}s, "
            f"{found.step_ms:.1f} ms"
        )
    share = f"decode {found.step_ms:.1f} ms <= {target} with {found.split.decode_units} {unit}s"
    return f"{share}: {-more} {unit}s to prefill" if more else share + _ttft_clause(slo, found)


def _loss_reason(s: Snapshot, slo: Slo, best: Outlook, current: Outlook) -> str:
    at_stake = len(s.prompts) + s.num_decodes
    other = "" if best is current else f"; {current.name} would lose {current.loss}"
    return (
        f"nothing tried so far meets both targets: {best.name} loses {best.loss} of {at_stake} requests "
        f"({best.num_late} prompts late{_ttft_clause(slo, best)}, TPOT {best.tpot_ms:.1f} of "
        f"{slo.tpot_ms:g} ms){other}"
    )


def _ttft_clause(slo: Slo, found: Outlook) -> str:
    return "" if found.ttft_ms is None else f", TTFT {found.ttft_ms:.0f} of {slo.ttft_ms:g} ms"
