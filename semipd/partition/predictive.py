"""The policy `predictive`: look at the work at hand, predict it under every split, choose.

1. If a merged step on the whole device meets both targets, do not split.
2. Else the smallest decode share whose step meets the TPOT target with a margin, if the waiting prompts
   then meet TTFT: whatever decode does not need makes prompts start sooner.
3. Else the split that loses the fewest requests; among equals the one that misses the targets least.

Hysteresis: a decode share one granule smaller must meet TPOT with twice the margin, and a split is left for
a better one of step 3 only if that is clearly better. Predictions are believed only near what was tried:
a lane gets at most one granule less than the least it has run on.
"""

from collections.abc import Sequence

from semipd.core.split import PolicyName, Split
from semipd.partition.forecast import Outlook, PrefillStep, decode_step_ms, judge, outlook, prefill_steps
from semipd.partition.interface import Decision, Slo, Snapshot

MARGIN_FRAC = 0.05
"""Kept free below the TPOT target: predictions of a step are off by a few percent."""

CLEARLY_LESS = 0.9
"""Of two splits that lose equally many requests, the other one is taken if it exceeds the targets by less
than this fraction of what the current one does."""

MIN_MERGE_TOKENS = 32


class PredictivePolicy:
    name: PolicyName = "predictive"
    per_window = False

    def decide(self, snapshot: Snapshot, slo: Slo) -> Decision:
        if not snapshot.times.confident:
            return Decision(snapshot.start, "step times are not known yet: the configured split")
        merged = _try_merged(snapshot, slo)
        if merged is not None:
            return merged
        return _choose_split(snapshot, slo, prefill_steps(snapshot.prompts, snapshot.chunk_tokens))


# ---- merged steps ----------------------------------------------------------------------------------


def _try_merged(s: Snapshot, slo: Slo) -> Decision | None:
    """The largest merged step that keeps TPOT, if the queue then keeps TTFT."""
    margin = MARGIN_FRAC if s.merged_tokens else 2 * MARGIN_FRAC
    limit_ms = slo.tpot_ms * (1 - margin)
    budget = s.merge_tokens
    while budget >= max(MIN_MERGE_TOKENS, s.num_decodes + 1):
        steps = prefill_steps(s.prompts, budget - s.num_decodes)
        line = s.times.merged(s.num_decodes, s.context_tokens)
        step_ms = max((line.ms(new, attended) for new, attended, _ in steps), default=line.constant_ms)
        if step_ms <= limit_ms:
            found = judge(s, slo, s.table.solo_decode, steps, line, step_ms, step_ms)
            return None if found.num_late else _merged_decision(s, slo, budget, found)
        budget //= 2
    return None


def _merged_decision(s: Snapshot, slo: Slo, budget: int, found: Outlook) -> Decision:
    reason = (
        f"a merged step of {budget} tokens takes {found.step_ms:.1f} ms <= {slo.tpot_ms:g} ms"
        f"{_ttft_clause(slo, found)}: no split needed"
    )
    return Decision(s.current, reason, budget, found.ttft_ms, found.step_ms, found.watched)


# ---- splits ----------------------------------------------------------------------------------------


def _choose_split(s: Snapshot, slo: Slo, steps: Sequence[PrefillStep]) -> Decision:
    candidates = _believable(s)
    sufficient = _smallest_sufficient(s, slo, candidates)
    if sufficient is not None:
        found = outlook(s, slo, sufficient, steps)
        if not found.num_late:
            return _decision(found, _sufficient_reason(s, slo, found))
    outlooks = [outlook(s, slo, split, steps) for split in candidates]
    best = min(outlooks, key=lambda o: (o.loss, o.excess, o.split.decode_units))
    current = next(o for o in outlooks if o.split == s.current)
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
    """The smallest decode share that keeps TPOT with a margin; the current one if that is hardly larger."""
    limit_ms = slo.tpot_ms * (1 - MARGIN_FRAC)
    for i, split in enumerate(candidates):
        step_ms = decode_step_ms(s, split)
        if step_ms > limit_ms:
            continue
        above = candidates[i + 1] if i + 1 < len(candidates) else None
        is_close = above == s.current and step_ms > slo.tpot_ms * (1 - 2 * MARGIN_FRAC)
        if is_close and above is not None and decode_step_ms(s, above) <= limit_ms:
            return above
        return split
    return None


def _decision(found: Outlook, reason: str) -> Decision:
    return Decision(found.split, reason, 0, found.ttft_ms, found.step_ms, found.watched)


# ---- reasons ---------------------------------------------------------------------------------------


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
    other = "" if best.split == current.split else f"; {current.split} would lose {current.loss}"
    return (
        f"no split tried so far meets both targets: {best.split} loses {best.loss} of {at_stake} requests "
        f"({best.num_late} prompts late{_ttft_clause(slo, best)}, TPOT {best.tpot_ms:.1f} of "
        f"{slo.tpot_ms:g} ms){other}"
    )


def _ttft_clause(slo: Slo, found: Outlook) -> str:
    return "" if found.ttft_ms is None else f", TTFT {found.ttft_ms:.0f} of {slo.ttft_ms:g} ms"
