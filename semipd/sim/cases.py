"""One simulation as plain data, its result as plain data, and a cache keyed by everything that matters."""

import gc
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import semipd
from semipd.config.config import default_engine_settings
from semipd.core.errors import SemipdError
from semipd.core.events import Event
from semipd.core.request import Request
from semipd.core.slo import Targets
from semipd.devices.sim.device import SimDevice, known_gpu, known_model, pool_blocks
from semipd.devices.sim.profile import load_profile
from semipd.sim.disaggregated import Disaggregated
from semipd.sim.group import Group
from semipd.sim.outcomes import Figures, figures
from semipd.sim.policies import Kind, parse_policy, settings_for
from semipd.sim.simulator import Engine, Ledger, simulate
from semipd.sim.split_log import SplitLog
from semipd.sim.workloads.classes import ServiceClass, class_of, classes_of
from semipd.sim.workloads.generated import GENERATORS
from semipd.sim.workloads.prompts import request_of
from semipd.sim.workloads.traces import Arrival, Trace, read_trace, replay
from semipd.sim.worlds import known_world

GENERATED = "generated"
"""Form of a trace that stands in no file."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated.

    Attributes:
        trace, form: a file and its format, or one of GENERATORS and "generated".
        rate: requests per second and GPU, which arrive for `window_s`.
        seed: of arrivals, see replay, of generated traces, and of who belongs to which class.
        ttft_ms, ttft_ms_per_1k_tokens, tpot_ms, itl_ms: targets; the engine is told the first and the third.
        classes: of whom requests are, with targets of their own; (): the trace's, with the targets above.
        profile: file of measured values; "": built-in ones.
        bandwidth, contention: scale what the profile and the `world`, one of WORLDS, say.
        kv_frac: share of the free memory for the KV pool.
        longest: tokens; longer sequences of the trace are left out; 0: none is.
        stop_below: give the run up once the attainment cannot reach it any more; 0: never.
    """

    trace: str
    form: str
    policy: str
    rate: float
    ttft_ms: float
    tpot_ms: float
    window_s: float = 600.0
    seed: int = 0
    ttft_ms_per_1k_tokens: float = 0.0
    itl_ms: float | None = None
    classes: tuple[ServiceClass, ...] = ()
    gpu: str = "h200"
    model: str = "llama-3-8b"
    profile: str = ""
    bandwidth: float = 1.0
    contention: float = 1.0
    max_model_len: int = 131072
    max_num_seqs: int = 256
    prefill_chunk_tokens: int = 2048
    kv_frac: float = 0.95
    world: str = "default"
    longest: int = 0
    stop_below: float = 0.0

    @property
    def slo(self) -> Targets:
        return Targets(self.ttft_ms, self.ttft_ms_per_1k_tokens, self.tpot_ms, self.itl_ms)

    def key(self) -> str:
        """Changes with the case, the trace's content, the profile's content, the world and the simulated
        code."""
        code = _code_digest(parse_policy(self.policy).kind)
        contents = [_digest(self.trace), _digest(self.profile) if self.profile else "", code]
        contents.append(repr(known_world(self.world)))
        return hashlib.sha256(json.dumps([asdict(self), *contents]).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Result:
    """`split_changes`, `split_held_s`: see SplitLog."""

    figures: Figures
    wall_s: float
    cpu_s: float
    num_steps: int
    num_preemptions: int
    split_changes: int
    split_held_s: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Result":
        return cls(**(data | {"figures": Figures.from_json(data["figures"])}))


def run_case(case: Case) -> Result:
    """Simulate it. Raises SemipdError for a bad trace, profile, policy, GPU or model."""
    spec = parse_policy(case.policy)
    trace = trace_of(case)
    arrivals = list(replay(trace, case.rate * spec.num_gpus, case.window_s, case.seed))
    max_misses = int(len(arrivals) * (1.0 - case.stop_below)) if case.stop_below else None
    ledger = Ledger(max_misses)
    log = SplitLog()
    system, vocab_size = build(case, ledger, log.note)
    requests = requests_of(case, trace, arrivals, vocab_size)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    with _no_cycle_collector():
        complete = simulate(system, requests, ledger)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    coordinators = system.coordinators
    return Result(
        figures(list(ledger.outcomes.values()), case.window_s, complete=complete, num_gpus=spec.num_gpus),
        wall_s,
        cpu_s,
        sum(c.decode.num_steps + c.prefill.num_steps for c in coordinators),
        sum(c.scheduler.num_preemptions for c in coordinators),
        log.num_shared_changes,
        log.held_s,
    )


def requests_of(case: Case, trace: Trace, arrivals: Iterable[Arrival], vocab_size: int) -> Iterator[Request]:
    """What the engines are sent, made when it is asked for."""
    classes = case.classes or classes_of(trace, case.slo)
    for arrival in arrivals:
        of = class_of(classes, arrival, case.seed)
        yield request_of(trace, arrival, vocab_size, of.targets, of.name)


def build(case: Case, ledger: Ledger, on_event: Callable[[Event], None]) -> tuple["Simulated", int]:
    """The system of a case, and its vocabulary's size."""
    gpu, model, world = known_gpu(case.gpu), known_model(case.model), known_world(case.world)
    spec = parse_policy(case.policy)
    profile = world.apply(load_profile(gpu, case.profile), one_lane=spec.one_lane)
    profile = profile.scaled(bandwidth=case.bandwidth, contention=case.contention)
    base = default_engine_settings(
        device=f"sim:{case.gpu}",
        model_name=case.model,
        max_model_len=case.max_model_len,
        max_num_seqs=case.max_num_seqs,
        prefill_chunk_tokens=case.prefill_chunk_tokens,
    )
    settings = settings_for(spec, base, case.slo, gpu)
    kv_frac = case.kv_frac * (1.0 if spec.one_lane else world.divided_kv_frac)
    num_blocks = pool_blocks(profile, model, kv_frac=kv_frac)

    def device(*, prompts_arrive: bool = False) -> SimDevice:
        return SimDevice(
            profile,
            model,
            num_blocks=num_blocks,
            max_model_len=case.max_model_len,
            prompts_arrive=prompts_arrive,
        )

    if spec.kind == "1p1d":
        return Disaggregated(device(), device(prompts_arrive=True), settings, ledger), model.vocab_size
    # the first one's events stand for all
    engines = [Engine(device(), settings, ledger, None if n else on_event) for n in range(spec.replicas)]
    return engines[0] if len(engines) == 1 else Group(engines), model.vocab_size


Simulated = Engine | Group | Disaggregated


class Cache:
    """Results by key, one file each, so that a broken-off comparison goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, case: Case) -> Result | None:
        try:
            stored = json.loads((self._folder / f"{case.key()}.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return Result.from_json(stored["result"])

    def run(self, case: Case) -> Result:
        """The stored result, or a fresh one, stored."""
        found = self.get(case)
        if found is not None:
            return found
        result = run_case(case)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{case.key()}.json"
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"case": asdict(case), "result": result.to_json()}, indent=1))
        unfinished.replace(path)
        return result


def trace_of(case: Case) -> Trace:
    """Raises SemipdError: see read_trace; `unknown_workload`."""
    if case.form != GENERATED:
        return _recorded(case.trace, case.form).up_to(case.longest)
    if case.trace not in GENERATORS:
        message = f"There is no generated workload {case.trace!r}."
        raise SemipdError("unknown_workload", message, f"Choose one of {', '.join(GENERATORS)}.")
    return _generated(case.trace, case.seed)


@cache
def _recorded(path: str, form: str) -> Trace:
    return read_trace(Path(path), form)


@cache
def _generated(name: str, seed: int) -> Trace:
    return GENERATORS[name](seed)


@cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""


SIMULATED_ROOMS = (
    "config",
    "core",
    "system",
    "memory",
    "sched",
    "partition",
    "engine",
    "devices/sim",
    "sim/workloads",
)
SIMULATING_FILES = (
    "outcomes",
    "simulator",
    "split_log",
    "disaggregated",
    "group",
    "policies",
    "cases",
)
OWN_FILES = {"paper": ("paper.py",), "predictive": ("predictive.py", "forecast.py", "gaps.py")}
"""Of `partition/policies`: they decide nothing under any other policy."""


@cache
def _code_digest(kind: Kind) -> str:
    """Of every source file that takes part in a simulation under such a policy."""
    package, here = Path(semipd.__file__).parent, Path(__file__).parent
    files = [path for room in SIMULATED_ROOMS for path in sorted((package / room).rglob("*.py"))]
    files += [here / f"{name}.py" for name in SIMULATING_FILES]
    foreign = {
        package / "partition" / "policies" / name
        for owner, names in OWN_FILES.items()
        if owner != kind
        for name in names
    }
    assert foreign <= set(files), f"{foreign} are not where they were"
    digest = hashlib.sha256()
    for path in files:
        if path not in foreign:
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _no_cycle_collector:  # noqa: N801
    """Millions of prefix entries and no cycles among them: looking for some takes a tenth of the time."""

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()
            gc.collect()
