"""What the demo's partition control predicts and chooses: the daemon's policy `predictive` in small."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from semipd_top.demo.gpu import MERGE_SIZES, SPLITS, Batch, Split, decode_ms, merged_ms, prefill_ms

MARGIN_FRAC = 0.1
TTFT_MARGIN_FRAC = 0.25
MAX_MOVE_GRANULES = 2
"""In one decision: beyond what was tried, predictions are not believed."""

Targets = Mapping[str, float]


class Prompt(NamedTuple):
    """Tokens still to be computed, those before them, and how long ago it came (its delay taken off)."""

    seq: int
    left_tokens: float
    prior_tokens: float
    age_ms: float


class Work(NamedTuple):
    """What is at hand; `prompts` in the order in which they are computed."""

    batch: Batch
    prompts: Sequence[Prompt]


@dataclass(frozen=True, slots=True)
class Outlook:
    """`merged_tokens`: merged steps of so many tokens on the whole device; 0: apart, under `split`."""

    split: Split
    merged_tokens: int
    tpot_ms: float
    ttft_ms: float | None
    watched: int | None
    num_late: int
    num_lost: int

    @property
    def name(self) -> str:
        prefill, decode = self.split
        return f"merged steps of {self.merged_tokens} tokens" if self.merged_tokens else f"{prefill}+{decode}"


@dataclass(frozen=True, slots=True)
class Verdict:
    found: Outlook
    reason: str


def outlook(work: Work, targets: Targets, split: Split, merged_tokens: int = 0) -> Outlook:
    """What the work at hand would meet. `split` is what stays in force while steps are merged."""
    if merged_tokens:
        chunk = max(merged_tokens - work.batch.num_decodes, 1)
        tpot_ms = merged_ms(work.batch, chunk)
        takes_ms = [prompt.left_tokens * tpot_ms / chunk for prompt in work.prompts]
    else:
        tpot_ms = decode_ms(work.batch, split[1])
        takes_ms = [prefill_ms(one.left_tokens, one.prior_tokens, split[0]) for one in work.prompts]
    hopeful = sorted(
        (max(prompt.age_ms + end_ms, 0.0), prompt.seq)
        for end_ms, prompt in zip(accumulate(takes_ms), work.prompts, strict=True)
        if prompt.age_ms < targets["ttft_ms"]
    )
    num_late = sum(ttft_ms > targets["ttft_ms"] for ttft_ms, _ in hopeful)
    rank = max(-(-len(hopeful) * int(targets["percentile"]) // 100), 1) - 1
    ttft_ms, watched = hopeful[rank] if hopeful else (None, None)
    num_lost = num_late + (work.batch.num_decodes if tpot_ms > targets["tpot_ms"] else 0)
    return Outlook(split, merged_tokens, tpot_ms, ttft_ms, watched, num_late, num_lost)


def decide(work: Work, targets: Targets, present: Split, present_merged: int) -> Verdict:
    merged = [outlook(work, targets, present, size) for size in MERGE_SIZES if size > work.batch.num_decodes]
    margin = MARGIN_FRAC if present_merged else 2 * MARGIN_FRAC
    safe = [way for way in merged if way.tpot_ms <= targets["tpot_ms"] * (1 - margin)]
    calm = next((way for way in safe if _is_calm(way, targets)), None)
    if calm is not None:
        return Verdict(calm, _merged_reason(calm, targets))
    enough = _smallest_sufficient(work, targets, present)
    if enough is not None:
        found = outlook(work, targets, _toward(present, enough))
        if not found.num_late:
            return Verdict(found, _sufficient_reason(work, targets, present, found))
    ways = [outlook(work, targets, split) for split in SPLITS if _toward(present, split) == split] + merged
    best = min(ways, key=lambda way: (way.num_lost, way.tpot_ms))
    here = next((way for way in ways if (way.split, way.merged_tokens) == (present, present_merged)), best)
    if here.num_lost == best.num_lost:
        best = here
    return Verdict(best, _loss_reason(work, targets, best, here))


def _smallest_sufficient(work: Work, targets: Targets, present: Split) -> Split | None:
    """Likewise the present one, while it is at most one granule more than that."""
    limit_ms = targets["tpot_ms"] * (1 - MARGIN_FRAC)
    enough = [split for split in SPLITS if decode_ms(work.batch, split[1]) <= limit_ms]
    if not enough:
        return None
    return present if present in enough[:2] else enough[0]


def _toward(present: Split, wanted: Split) -> Split:
    here, there = SPLITS.index(present), SPLITS.index(wanted)
    step = max(-MAX_MOVE_GRANULES, min(there - here, MAX_MOVE_GRANULES))
    return SPLITS[here + step]


def _is_calm(way: Outlook, targets: Targets) -> bool:
    return way.ttft_ms is None or way.ttft_ms <= targets["ttft_ms"] * (1 - TTFT_MARGIN_FRAC)


def _merged_reason(found: Outlook, targets: Targets) -> str:
    return (
        f"a merged step of {found.merged_tokens} tokens takes {found.tpot_ms:.1f} ms <= "
        f"{targets['tpot_ms']:g} ms{_ttft_clause(found, targets)}: no split needed"
    )


def _sufficient_reason(work: Work, targets: Targets, present: Split, found: Outlook) -> str:
    limit_ms = targets["tpot_ms"] * (1 - MARGIN_FRAC)
    more = found.split[1] - present[1]
    target = f"{limit_ms:.1f} ms ({targets['tpot_ms']:g} less {MARGIN_FRAC:.0%})"
    if more > 0:
        before_ms = decode_ms(work.batch, present[1])
        return (
            f"decode {before_ms:.1f} ms > {target} at {present[1]} SMs: +{more} SMs, {found.tpot_ms:.1f} ms"
        )
    share = f"decode {found.tpot_ms:.1f} ms <= {target} with {found.split[1]} SMs"
    return f"{share}: {-more} SMs to prefill" if more else share + _ttft_clause(found, targets)


def _loss_reason(work: Work, targets: Targets, best: Outlook, here: Outlook) -> str:
    at_stake = len(work.prompts) + work.batch.num_decodes
    other = "" if best is here else f"; {here.name} would lose {here.num_lost}"
    return (
        f"nothing tried so far meets both targets: {best.name} loses {best.num_lost} of {at_stake} requests "
        f"({best.num_late} prompts late{_ttft_clause(best, targets)}, TPOT {best.tpot_ms:.1f} of "
        f"{targets['tpot_ms']:g} ms){other}"
    )


def _ttft_clause(found: Outlook, targets: Targets) -> str:
    return "" if found.ttft_ms is None else f", TTFT {found.ttft_ms:.0f} of {targets['ttft_ms']:g} ms"
