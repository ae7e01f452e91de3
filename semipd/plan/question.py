"""What is asked of the planner, checked: what cannot be known is refused before anything is simulated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.slo import NO_TARGETS, Targets
from semipd.devices.sim.device import BLOCK_SIZE, known_gpu, known_model, pool_blocks, split_table
from semipd.devices.sim.models import MODELS, SimModel
from semipd.devices.sim.profile import Profile, load_profile
from semipd.sim.cases import Case
from semipd.sim.policies import parse_policy, settings_for
from semipd.sim.workloads.classes import classes_of
from semipd.sim.workloads.traces import Trace, form_of, read_trace

MISSES_TO_JUDGE = 20
"""A share of misses is known to about a fifth (one standard deviation) when so many may miss."""

BUDGETS = (512, 1024, 2048, 4096)
"""Tokens of a merged step that `chunked` without a number is tried with."""

UNTARGETED_MS = 1e9


@dataclass(frozen=True, slots=True)
class Family:
    """A policy as it was asked for, and the members it stands for, middle first."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """`case`: what all simulations share; its policy and rate say nothing. `rate`: requests per second on all
    GPUs together; 0: nobody has said. `wanted`: share of the requests that keep their targets. `judged`:
    the classes that have targets."""

    case: Case
    trace: Trace
    num_too_long: int
    gpus: tuple[str, ...]
    families: tuple[Family, ...]
    rate: float
    counts: range
    seeds: tuple[int, ...]
    wanted: float

    @property
    def judged(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.case.classes if one.targets != NO_TARGETS)

    @property
    def enough(self) -> int:
        return enough_requests(self.wanted)


def enough_requests(wanted: float) -> int:
    """To tell whether this share of them keeps its targets."""
    return math.ceil(round(MISSES_TO_JUDGE / (1.0 - wanted), 6))


def percent(share: float) -> str:
    return f"{share * 100:.4g} %"


def base_case(
    path: Path, form: str, model_name: str, gpus: Sequence[str], profile: str, window_s: float
) -> Case:
    """What is simulated, without targets yet. Raises SemipdError: `unknown_model`, `unknown_device`,
    `out_of_memory`, `invalid_profile`, and what the trace's reader raises."""
    model = known_model(model_name)
    longest = min([_longest(model, load_profile(known_gpu(gpu), profile)) for gpu in gpus])
    return Case(
        trace=str(path),
        form=form or form_of(path),
        policy="",
        rate=0.0,
        ttft_ms=UNTARGETED_MS,
        tpot_ms=UNTARGETED_MS,
        window_s=window_s,
        model=model.name,
        profile=profile,
        max_model_len=model.max_model_len,
        longest=longest,
    )


def _longest(model: SimModel, profile: Profile) -> int:
    """Tokens of the longest sequence that can be served at all."""
    try:
        num_blocks = pool_blocks(profile, model)
    except SemipdError as error:
        raise _too_large(model, profile, error) from error
    # block 0 is never handed out
    return min(model.max_model_len, (num_blocks - 1) * BLOCK_SIZE)


def _too_large(model: SimModel, profile: Profile, error: SemipdError) -> SemipdError:
    gpu = profile.gpu
    usable = gpu.memory_bytes * (1.0 - profile.kernels.activation_bytes_frac)
    num_gpus = math.floor(model.resident_bytes / usable) + 1
    fitting = [name for name, one in MODELS.items() if _fits(one, profile)]
    message = (
        f"{error.message} Its weights would need {num_gpus} of them, and one model on several GPUs (tensor "
        f"parallelism) is not simulated."
    )
    hint = f"Choose a larger GPU, or one of the models that fit {gpu.name}: {', '.join(fitting)}."
    return SemipdError("out_of_memory", message, hint)


def _fits(model: SimModel, profile: Profile) -> bool:
    try:
        pool_blocks(profile, model)
    except SemipdError:
        return False
    return True


def with_targets(case: Case, trace: Trace, slo: Targets | None) -> Case:
    """`slo`: for every class that has targets; None: each has the trace's. Raises
    SemipdError(`targets_missing`)."""
    classes = classes_of(trace, slo)
    targets = next((one.targets for one in classes if one.targets != NO_TARGETS), None)
    if targets is None:
        message = f"{trace.name} says nothing of targets, so nobody can tell what is within them."
        raise SemipdError("targets_missing", message, "Give them: --slo 500/25 is TTFT/TPOT in ms.")
    return replace(
        case,
        classes=classes,
        ttft_ms=targets.ttft_ms or UNTARGETED_MS,
        ttft_ms_per_1k_tokens=targets.ttft_ms_per_1k_tokens,
        tpot_ms=targets.tpot_ms or UNTARGETED_MS,
        itl_ms=targets.itl_ms,
    )


def usable_rows(case: Case, wanted: float) -> tuple[Trace, int]:
    """The trace without sequences that are longer than can be served, and how many those are. Raises
    SemipdError(`trace_too_short`)."""
    whole = read_trace(Path(case.trace), case.form)
    trace = whole.up_to(case.longest)
    too_long, enough = len(whole.rows) - len(trace.rows), enough_requests(wanted)
    if len(trace.rows) < enough:
        left_out = f", and {too_long} more of over {case.longest} tokens" if too_long else ""
        raise SemipdError(
            "trace_too_short",
            f"{case.trace} holds {len(trace.rows)} requests{left_out}. Whether {percent(wanted)} of them "
            f"keep their targets shows only with {enough} or more, of which {MISSES_TO_JUDGE} may miss.",
            "Record for longer, or ask for a lower --attainment.",
        )
    return trace, too_long


def families(names: Sequence[str], gpus: Sequence[str], order: str) -> tuple[Family, ...]:
    """`chunked` and `fixed` without a number are tuned. `order`: where a name has none. Raises
    SemipdError(`unknown_policy`, `impossible_split`)."""
    return tuple(_family(name, gpus, order) for name in names)


def _family(name: str, gpus: Sequence[str], order: str) -> Family:
    kind, plus, given = name.partition("+")
    behind = f"+{given if plus else order}"
    values = {"chunked": BUDGETS, "fixed": _splits(gpus)}.get(kind)
    members = (
        [f"{kind}:{value}{behind}" for value in _middle_first(values)] if values else [f"{kind}{behind}"]
    )
    for member in members:
        _check(member, gpus)
    return Family(name, tuple(members))


def _check(policy: str, gpus: Sequence[str]) -> None:
    """Raises SemipdError(`unknown_policy`, `impossible_split`)."""
    spec = parse_policy(policy)
    if spec.replicas > 1 or spec.kind == "1p1d":
        message = f"{policy!r} is no policy of one GPU."
        raise SemipdError("unknown_policy", message, "How many GPUs is said by --gpus.")
    for gpu in gpus:
        settings_for(spec, default_engine_settings(), NO_TARGETS, known_gpu(gpu))


def _splits(gpus: Sequence[str]) -> tuple[int, ...]:
    """Decode SMs that every one of the GPUs offers, every other of them."""
    common = set.intersection(
        *({split.decode_units for split in split_table(known_gpu(gpu))} for gpu in gpus)
    )
    return tuple(sorted(common))[1::2]


def _middle_first(values: Sequence[int]) -> list[int]:
    middle = (len(values) - 1) / 2
    return [values[idx] for idx in sorted(range(len(values)), key=lambda idx: abs(idx - middle))]
