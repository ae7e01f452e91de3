"""Partition control of the demo: who decides the split, what was decided, and what operators changed."""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from semipd_top.demo.gpu import NUM_SMS, SPLITS, Split
from semipd_top.demo.policy import Outlook, Targets, Verdict, Work, decide, outlook
from semipd_top.demo.requests import Journal
from semipd_top.demo.wishes import checked_targets, expiry_s, granted_split

KEPT = 128
DECIDE_EVERY_S = 0.5
LOG_EVERY_S = 1.0
OFF_TOKENS = 512
"""Of a merged step in the mode off."""

SOLO_PREFILL: Split = (NUM_SMS, 0)
SOLO_DECODE: Split = (0, NUM_SMS)
BUCKETS_MS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
PHASES = ("prefill", "decode", "merged")
CONFIDENT_STEPS = 32
ERROR_GAIN = 0.1


class Choice(NamedTuple):
    """What steps launched now use; `merged_tokens` 0: the lanes run apart."""

    split: Split
    merged_tokens: int
    rule: str
    reason: str


class Control:
    """`at`: seconds since the demo began."""

    def __init__(self, journal: Journal, began_s: float, targets: Targets, rng: random.Random) -> None:
        self.mode = "auto"
        self.divided: Split = SPLITS[len(SPLITS) // 2]
        self.num_steps = dict.fromkeys(PHASES, 0)
        self.duty = 1.0
        self.last_switch: dict[str, Any] | None = None
        self.num_switches = 0
        self._journal, self._began_s, self._targets, self._rng = journal, began_s, targets, rng
        self._change = self._change_at(None, "auto", "configuration", "start") | {"effective_at_s": None}
        self._shared = Choice(self.divided, 0, "configuration", "start")
        self.forget()

    def forget(self) -> None:
        """An engine starts: its logs are empty. What it has learned was saved, and what an operator ordered
        holds on."""
        self.history: deque[dict[str, Any]] = deque([self._change], maxlen=KEPT)
        self.decisions: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.effective = SOLO_DECODE
        self._watched: int | None = None
        self._decided_at = float("-inf")
        self._errors: dict[str, float | None] = {"ttft": None, "tpot": None}
        self._switch_counts = [0] * (len(BUCKETS_MS) + 1)
        self._switch_sum_ms = 0.0

    @property
    def is_merging(self) -> bool:
        """While both lanes have work, steps of the whole device do both."""
        return self._shared.merged_tokens > 0

    # ---- every turn ----------------------------------------------------------------------------

    def choose(self, at: float, work: Work, prefill_busy: bool) -> Choice:
        """With both lanes busy the shared choice, else lending."""
        decode_busy = work.batch.num_decodes > 0
        if prefill_busy and decode_busy:
            if self.mode == "auto" and at >= self._decided_at + DECIDE_EVERY_S:
                self._decide(at, work)
            return self._shared
        if self.mode == "off":
            return self._shared
        if prefill_busy:
            return Choice(SOLO_PREFILL, 0, "lending", "only prefill has work")
        return Choice(SOLO_DECODE, 0, "lending", "only decode has work")

    def launch(self, at: float, choice: Choice) -> None:
        """A step runs under `choice`."""
        split = SOLO_DECODE if choice.merged_tokens else choice.split
        granted = self._change["granted"]
        if self._change["effective_at_s"] is None and granted in (None, list(split)):
            self._change["effective_at_s"] = self._began_s + at
        if split == self.effective:
            return
        ms = 10 ** self._rng.uniform(-1.2, 0.9)
        self.num_switches += 1
        self._switch_counts[bisect_left(BUCKETS_MS, ms)] += 1
        self._switch_sum_ms += ms
        told = {"from": list(self.effective), "to": list(split), "switch_ms": ms}
        told |= {"rule": choice.rule, "reason": choice.reason}
        self._journal.add(at, "split_changed", told)
        self.last_switch = {"at_s": self._began_s + at, **told}
        self.effective = split

    def expire(self, at: float) -> None:
        """Back to auto when an override's time is up."""
        expires_at_s = self._change["expires_at_s"]
        if expires_at_s is not None and self._began_s + at >= expires_at_s:
            why = f"the mode {self.mode} set by {self._change['actor']} has ended"
            self._enter(at, self._change_at(at, "auto", "expiry", why))

    def observe(self, phase: str, num_steps: int, step_ms: float, shared: bool, duty: float) -> None:
        """Steps that ended; `shared`: they are those that the last decision was about."""
        self.num_steps[phase] += num_steps
        self.duty += 0.05 * (duty - self.duty)
        if shared and self.decisions and num_steps:
            self.decisions[-1]["observed_tpot_ms"] = step_ms

    def first_token(self, seq: int, ttft_ms: float) -> None:
        """`ttft_ms` below 0: the request had agreed to wait for longer."""
        if seq == self._watched and self.decisions and ttft_ms > 0:
            decision = self.decisions[-1]
            decision["observed_ttft_ms"] = ttft_ms
            self._learn("ttft", decision["predicted_ttft_ms"], ttft_ms)

    def _decide(self, at: float, work: Work) -> None:
        self._decided_at = at
        if self.num_steps["prefill"] < CONFIDENT_STEPS or self.num_steps["decode"] < CONFIDENT_STEPS:
            here = Outlook(self.divided, 0, 0.0, None, None, 0, 0)
            verdict = Verdict(here, "step times are not known yet: the configured split")
            self._log(at, verdict, known=False)
        else:
            verdict = decide(work, self._targets, self.divided, self._shared.merged_tokens)
            self._log(at, verdict, known=True)
        found = verdict.found
        split = SOLO_DECODE if found.merged_tokens else found.split
        self._shared = Choice(split, found.merged_tokens, "policy predictive", verdict.reason)
        if not found.merged_tokens:
            self.divided = found.split

    def _log(self, at: float, verdict: Verdict, *, known: bool) -> None:
        found, at_s = verdict.found, self._began_s + at
        if self.decisions:
            last = self.decisions[-1]
            same = (last["split"], last["merged_tokens"]) == (list(found.split), found.merged_tokens)
            if same and at_s - last["at_s"] < LOG_EVERY_S:
                return
            self._learn("tpot", last["predicted_tpot_ms"], last["observed_tpot_ms"])
        self._watched = found.watched
        self.decisions.append(
            {
                "split": list(found.split),
                "reason": verdict.reason,
                "merged_tokens": found.merged_tokens,
                "predicted_ttft_ms": found.ttft_ms if known else None,
                "predicted_tpot_ms": found.tpot_ms if known else None,
                "at_s": at_s,
                "observed_ttft_ms": None,
                "observed_tpot_ms": None,
            }
        )

    def _learn(self, name: str, predicted_ms: float | None, observed_ms: float | None) -> None:
        if predicted_ms and observed_ms is not None:
            error, mean = abs(observed_ms / predicted_ms - 1), self._errors[name]
            self._errors[name] = error if mean is None else mean + ERROR_GAIN * (error - mean)

    # ---- operators -----------------------------------------------------------------------------

    def set(self, at: float, wish: Mapping[str, Any], work: Work, both_busy: bool) -> dict[str, Any]:
        """`wish` is checked, and has a mode, an actor and a reason. Raises SemipdError: `impossible_split`
        or `invalid_value`."""
        requested, granted, rounding = granted_split(wish)
        expires_s = expiry_s(wish)
        change = self._change_at(at, wish["mode"], wish["actor"], wish["reason"])
        change |= {"requested": requested, "rounding": rounding}
        change["granted"] = None if granted is None else list(granted)
        change["expires_at_s"] = None if expires_s is None else change["at_s"] + expires_s
        forecast = self._forecast(change["mode"], granted, work)
        dry_run = bool(wish.get("dry_run", False))
        if not dry_run:
            self._enter(at, change)
        at_once = change["mode"] == "off" or both_busy
        takes_effect = (
            "with the next step"
            if at_once
            else "when both lanes have work: until then an idle lane lends its units"
        )
        return {**change, "dry_run": dry_run, "forecast": forecast, "takes_effect": takes_effect}

    def set_targets(self, at: float, wish: Mapping[str, Any], targets: dict[str, float]) -> None:
        """Changes `targets`. Raises SemipdError(`invalid_value`); then nothing has changed."""
        wanted = checked_targets(wish)
        if not wanted:
            return
        targets |= wanted
        self._decided_at = float("-inf")
        change = self._change_at(at, self.mode, wish["actor"], wish["reason"])
        self.history.append(change | {"effective_at_s": change["at_s"], "slo": dict(targets)})
        told = {"actor": wish["actor"], "reason": wish["reason"], **targets}
        self._journal.add(at, "slo_changed", told)

    def _enter(self, at: float, change: dict[str, Any]) -> None:
        if change["mode"] == "off":
            self._shared = Choice(SOLO_DECODE, OFF_TOKENS, change["actor"], change["reason"])
        else:
            prefill, decode = change["granted"] or self.divided
            self.divided = (prefill, decode)
            self._shared = Choice(self.divided, 0, change["actor"], change["reason"])
        self.mode, self._change = change["mode"], change
        self._decided_at = float("-inf")
        self.history.append(change)
        expires_at_s = change["expires_at_s"]
        told = {name: change[name] for name in ("mode", "actor", "reason")}
        told["granted"] = change["granted"] or []
        told["expires_s"] = 0.0 if expires_at_s is None else expires_at_s - change["at_s"]
        self._journal.add(at, "partition_changed", told)

    def _change_at(self, at: float | None, mode: str, actor: str, reason: str) -> dict[str, Any]:
        return {
            "at_s": None if at is None else self._began_s + at,
            "mode": mode,
            "actor": actor,
            "reason": reason,
            "requested": {},
            "granted": None,
            "rounding": "",
            "expires_at_s": None,
            "effective_at_s": None,
            "slo": None,
        }

    def _forecast(self, mode: str, granted: Split | None, work: Work) -> dict[str, Any] | None:
        if min(self.num_steps["prefill"], self.num_steps["decode"]) < CONFIDENT_STEPS:
            return None
        if mode == "auto":
            verdict = decide(work, self._targets, self.divided, self._shared.merged_tokens)
            found = verdict.found
            split = [] if found.merged_tokens else list(found.split)
            times = {"ttft_ms": found.ttft_ms, "tpot_ms": found.tpot_ms}
            return {"split": split, **times, "reason": verdict.reason}
        merged_tokens = OFF_TOKENS if mode == "off" else 0
        found = outlook(work, self._targets, granted or self.divided, merged_tokens)
        return {
            "split": list(granted or ()),
            "ttft_ms": found.ttft_ms,
            "tpot_ms": found.tpot_ms,
            "late_prompts": found.num_late,
            "requests_lost": found.num_lost,
        }

    # ---- answers -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """`partition` of a state frame."""
        shared = self._shared
        return {
            "mode": self.mode,
            "policy": "predictive",
            "change": dict(self._change),
            "shared": {
                "split": list(self.divided),
                "merged_tokens": shared.merged_tokens,
                "rule": shared.rule,
                "reason": shared.reason,
            },
            "effective": list(self.effective),
            "decision": dict(self.decisions[-1]) if self.decisions else None,
            "prefill_duty": self.duty,
            "prediction": {
                "ttft_error": self._errors["ttft"],
                "tpot_error": self._errors["tpot"],
                "steps": {name: _phase(num) for name, num in self.num_steps.items()},
            },
            "switch_ms": {
                "bounds_ms": list(BUCKETS_MS),
                "counts": list(self._switch_counts),
                "sum_ms": self._switch_sum_ms,
                "count": sum(self._switch_counts),
            },
        }

    def full_status(self, slo: dict[str, Any]) -> dict[str, Any]:
        """As partition.get answers."""
        return self.status() | {
            "slo": slo,
            "unit": "SM",
            "num_units": NUM_SMS,
            "possible": [list(split) for split in SPLITS],
            "history": [dict(change) for change in self.history],
            "decisions": [dict(decision) for decision in self.decisions],
        }


def _phase(num_steps: int) -> dict[str, Any]:
    """The more was seen, the closer the predictions."""
    confident = num_steps >= CONFIDENT_STEPS
    return {
        "steps": num_steps,
        "confident": confident,
        "error": 0.03 + 0.4 / num_steps**0.5 if confident else None,
        "correction": 1.0 + 0.1 / (1 + num_steps / 500) if num_steps else 1.0,
    }
