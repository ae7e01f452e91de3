"""A lane of the simulated device: who is resident, what their steps cost, and the queue of steps."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from semipd.core.plan import Join, Segment, StepPlan, StepResult, TokenLogprobs
from semipd.core.request import SeqId
from semipd.core.split import LaneName
from semipd.devices.sim.cost import CostModel, StepCost, StepWork
from semipd.devices.sim.tokens import TABLE_SIZE, TokenRun, made_up_logprobs, token_runs, walk_start

NEVER_NS = 2**62
"""When a step ends that has not begun."""


@dataclass(slots=True, eq=False)
class SimResident:
    """`position` is the index of the next token: how many are known or in flight."""

    walk: int
    position: int
    token_ids: list[int]  # of the time it joined: the prompt, for its log-probabilities
    num_alternatives: int | None
    allowed: tuple[int, ...] = ()

    def choose(self, run: TokenRun) -> TokenRun:
        """`run`, or one of the allowed tokens in its place."""
        return (self.allowed[run[0] % len(self.allowed)],) if self.allowed else run


@dataclass(slots=True, eq=False)
class SimStep:
    """A launched step. `left_ns` is what remains of it at full speed, as of `since_ns`. `switches`: its lane
    had another number of SMs before. `after`: a step that must end before this one begins."""

    step_id: int
    contents: "Contents"
    cost: StepCost
    switches: bool = False
    after: "SimStep | None" = None
    start_ns: int = 0
    since_ns: int = 0
    left_ns: float = 0.0
    slowdown: float = 1.0
    finish_ns: int = NEVER_NS


Logprobs = list[tuple[TokenLogprobs, ...] | None]

Contents = tuple[list[TokenRun], Logprobs | None, dict[SeqId, list[TokenLogprobs]] | None]
"""Tokens, log-probabilities and prompt log-probabilities, as in StepResult."""


@dataclass(slots=True, eq=False)
class SimLane:
    """Runs steps in order, up to `depth` in flight. Contents of a step are fixed at launch, since tokens do
    not depend on KV; only its time depends on the other lane, which is the clock's matter.

    `prompts_arrive`: prefill segments cost nothing but their newest token, as on a decode instance that is
    sent the KV of finished prompts.
    """

    name: LaneName
    depth: int
    costs: CostModel
    vocab_size: int
    on_launch: Callable[["SimLane", int], None]
    on_poll: Callable[[int], None]
    prompts_arrive: bool = False
    residents: dict[SeqId, SimResident] = field(default_factory=dict)
    queue: deque[SimStep] = field(default_factory=deque)
    finished: list[StepResult] = field(default_factory=list)
    _batch: "_DecodeBatch" = field(default_factory=lambda: _DecodeBatch((), []))
    _last_units: int = 0

    def capacity(self) -> int:
        return self.depth - len(self.queue)

    def launch(self, plan: StepPlan, now_ns: int) -> None:
        assert self.capacity() > 0, f"{self.name} lane is full"
        self._apply(plan)
        units = plan.split.units_of(self.name)
        switches = self._last_units not in (0, units)
        self._last_units = units
        cost = self._cost(plan, units, switches)
        self.queue.append(SimStep(plan.step_id, self._contents(plan), cost, switches, left_ns=cost.ns))
        self.on_launch(self, now_ns)

    def poll(self, now_ns: int) -> list[StepResult]:
        self.on_poll(now_ns)
        done, self.finished = self.finished, []
        return done

    def rebuild(self, residents: Sequence[Join]) -> None:
        assert not self.queue, "rebuild with steps in flight"
        self._batch = _DecodeBatch((), [])
        self.residents = {join.seq: _resident(join) for join in residents}

    def _apply(self, plan: StepPlan) -> None:
        """Leaves and joins; then the batch, which is kept while its tuple is the same object."""
        changed = plan.decode is not self._batch.seqs
        if changed:
            self._batch.flush()
        for seq in plan.leaves:
            del self.residents[seq]
        for join in plan.joins:
            assert join.seq not in self.residents, f"seq {join.seq} joins twice"
            self.residents[join.seq] = _resident(join)
        if changed:
            self._batch = _DecodeBatch(plan.decode, [self.residents[seq] for seq in plan.decode])

    def _cost(self, plan: StepPlan, units: int, switches: bool) -> StepCost:
        batch, segments = self._batch, plan.segments
        if self.prompts_arrive:
            arrived = [segment.start + segment.length for segment in segments if segment.sample]
            work = StepWork(len(batch.seqs) + len(arrived), batch.context_tokens + sum(arrived))
        else:
            chunks = tuple([(segment.start, segment.length) for segment in segments]) if segments else ()
            sampled = sum([segment.sample for segment in segments]) if segments else 0
            work = StepWork(len(batch.seqs), batch.context_tokens, chunks, sampled)
        cost = self.costs.step(work, units)
        if switches:
            cost.ns += self.costs.profile.kernels.switch_ns
        return cost

    def _contents(self, plan: StepPlan) -> Contents:
        runs = token_runs(self.vocab_size)
        tokens = self._batch.advance(runs)
        wanted = self._batch.num_alternatives
        if not plan.segments and not wanted:
            return tokens, None, None
        wanted = list(wanted) or [None] * len(tokens)
        prompt_logprobs: dict[SeqId, list[TokenLogprobs]] = {}
        for segment in plan.segments:
            resident = self.residents[segment.seq]
            if segment.prompt_logprobs is not None:
                prompt_logprobs[segment.seq] = self._prompt_logprobs(resident, segment)
            if segment.sample:
                tokens.append(resident.choose(runs[(resident.walk + resident.position) % TABLE_SIZE]))
                resident.position += 1
                wanted.append(resident.num_alternatives)
        return tokens, self._logprobs(tokens, wanted), prompt_logprobs or None

    def _logprobs(self, tokens: list[TokenRun], wanted: list[int | None]) -> Logprobs | None:
        if wanted.count(None) == len(wanted):
            return None
        return [
            None if count is None else (made_up_logprobs(token, count, self.vocab_size),)
            for (token,), count in zip(tokens, wanted, strict=True)
        ]

    def _prompt_logprobs(self, resident: SimResident, segment: Segment) -> list[TokenLogprobs]:
        assert segment.prompt_logprobs is not None
        predicted = resident.token_ids[segment.start + 1 : segment.start + segment.length + 1]
        return [made_up_logprobs(token, segment.prompt_logprobs, self.vocab_size) for token in predicted]


class _DecodeBatch:
    """Residents that advance by one token per step, with what a step needs in few additions per token."""

    def __init__(self, seqs: tuple[SeqId, ...], residents: list[SimResident]) -> None:
        self.seqs = seqs
        counts = [resident.num_alternatives for resident in residents]
        self.num_alternatives = counts if any(count is not None for count in counts) else []
        self._residents = residents
        self._restricted = [(idx, resident) for idx, resident in enumerate(residents) if resident.allowed]
        self._walks = [resident.walk + resident.position for resident in residents]
        self._base_tokens = sum(resident.position for resident in residents)
        self._num_steps = 0

    @property
    def context_tokens(self) -> int:
        """KV tokens that the next step reads."""
        return self._base_tokens + self._num_steps * len(self.seqs)

    def advance(self, runs: tuple[TokenRun, ...]) -> list[TokenRun]:
        steps = self._num_steps
        self._num_steps += 1
        tokens = [runs[(walk + steps) % TABLE_SIZE] for walk in self._walks]
        for idx, resident in self._restricted:
            tokens[idx] = resident.choose(tokens[idx])
        return tokens

    def flush(self) -> None:
        """Write the positions back before the batch changes."""
        for resident in self._residents:
            resident.position += self._num_steps
        self._num_steps = 0


def _resident(join: Join) -> SimResident:
    params = join.params
    prompt = join.token_ids[: join.num_prompt_tokens] if params.prompt_logprobs is not None else []
    allowed = tuple(sorted(set(params.allowed_token_ids)))
    return SimResident(walk_start(params.seed), len(join.token_ids), prompt, params.logprobs, allowed)
