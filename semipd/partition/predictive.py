"""The policy `predictive`: look at the work at hand, predict it under every split, choose.

1. If a merged step on the whole device meets both targets, do not split.
2. Else the smallest decode share whose step meets the TPOT target with a margin, if the waiting prompts
   then meet TTFT: whatever decode does not need makes prompts start sooner.
3. Else whatever loses the fewest requests, split or merged; among equals what misses the targets least.

Hysteresis: merging must meet TPOT with twice the margin, and so must the smallest decode share, else one
granule more is left to it; in step 3 the present way is given up only for a clearly better one. Predictions
are believed only near what was tried: a lane gets at most one granule less than the least it has run on.
"""

from collections.abc import Sequence

from semipd.core.slo import Slo
from semipd.core.split import PolicyName, Split
from semipd.partition.forecast import (
    Outlook,
    decode_step_ms,
    merged_outlook,
    prefill_steps,
    split_outlook,
    split_tpot_ms,
)
from semipd.partition.interface import Decision, Snapshot

MARGIN_FRAC = 0.1
"""Kept free below the TPOT target: predictions of a step are off by a few percent."""

CLEARLY_LESS = 0.9
"""Of two ways that lose equally many requests, the new one is taken if it exceeds the targets by less than
this fraction of what the present one does."""

MERGE_GRANULE = 64
"""Tokens; budgets are multiples of it, so that small changes of a prediction change nothing."""


class PredictivePolicy:
    name: PolicyName = "predictive"
    per_window = False

    def decide(self, snapshot: Snapshot, slo: Slo) -> Decision:
        s = snapshot
        if not s.times.confident:
            return Decision(s.start, "step times are not known yet: the configured split")
        budgets = merge_budgets(s, slo)
        merged = [merged_outlook(s, slo, budget) for budget in budgets[:1]]
        if merged and not merged[0].loss:
            return _decision(merged[0], _merged_reason(slo, merged[0]))
        steps = prefill_steps(s.prompts, s.chunk_tokens)
        candidates = _believable(s)
        sufficient = _smallest_sufficient(s, slo, candidates)
        if sufficient is not None:
            found = split_outlook(s, slo, sufficient, steps)
            if not found.num_late:
                return _decision(found, _sufficient_reason(s, slo, found))
        ways = [split_outlook(s, slo, split, steps) for split in _contenders(s, slo, candidates)]
        ways += merged + [merged_outlook(s, slo, budget) for budget in budgets[1:]]
        return _least_loss(s, slo, ways)


# ---- choosing --------------------------------------------------------------------------------------


def merge_budgets(s: Snapshot, slo: Slo) -> list[int]:
    """Merged steps worth a look: first the largest that keeps TPOT with a margin, then the largest allowed,
    which computes prompts fastest. Empty when none keeps TPOT, or none is allowed."""
    if s.merge_tokens <= s.num_decodes:
        return []
    margin = MARGIN_FRAC if s.merged_tokens else 2 * MARGIN_FRAC
    line = s.times.merged(s.num_decodes, s.context_tokens)
    longest = max((prompt.prior_tokens + prompt.new_tokens for prompt in s.prompts), default=0)
    token_ms = line.per_token_ms + line.per_context_ms * longest  # what the last token of a prompt costs
    spare_ms = slo.tpot_ms * (1 - margin) - line.constant_ms
    room = min(int(spare_ms / token_ms), s.merge_tokens) if token_ms > 0 else s.merge_tokens
    budget = min(s.num_decodes + room, s.merge_tokens) // MERGE_GRANULE * MERGE_GRANULE
    if spare_ms <= 0 or budget <= s.num_decodes:
        return []
    return [budget] if budget == s.merge_tokens else [budget, s.merge_tokens]


def _contenders(s: Snapshot, slo: Slo, candidates: Sequence[Split]) -> list[Split]:
    """The splits worth a walk of the queue. With a larger decode share prompts only become later, so the
    fewest losses are at the smallest share of all or at the smallest that keeps TPOT; the neighbours of the
    present one and the largest are for the ties that are left."""
    here, last = candidates.index(s.current), len(candidates) - 1
    tpots_ms = [split_tpot_ms(s, split) for split in candidates]
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


# ---- reasons ---------------------------------------------------------------------------------------


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
