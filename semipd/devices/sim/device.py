"""The simulated device: two lanes driven by one clock, real or virtual, that knows their contention."""

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeVar

from semipd.core.errors import SemipdError
from semipd.core.plan import StepResult
from semipd.core.settings import EngineSettings
from semipd.core.split import LaneName, Split
from semipd.core.state.device import DeviceStats
from semipd.devices.contract import DeviceInfo, LaneFailed
from semipd.devices.sim.contention import slowdown
from semipd.devices.sim.cost import CostModel
from semipd.devices.sim.gpus import GPUS, Gpu
from semipd.devices.sim.lane import NEVER_NS, SimLane, SimStep
from semipd.devices.sim.models import MODELS, SimModel
from semipd.devices.sim.profile import Profile, load_profile

DECODE_DEPTH = 2
"""Like CUDA: the host runs one decode step behind, so that the GPU never waits for it."""

BLOCK_SIZE = 16
"""Tokens per KV block."""

DEVICE_PREFIX = "sim:"

DEFAULT_KV_FRACTION = 0.9
"""Like CUDA."""

Row = TypeVar("Row")


class SimDevice:
    """Time enters only as `now_ns`; between two calls the clock walks from event to event, so the result
    does not depend on how often anybody looks."""

    def __init__(
        self,
        profile: Profile,
        model: SimModel,
        *,
        num_blocks: int,
        vocab_size: int = 0,
        max_model_len: int = 0,
        decode_depth: int = DECODE_DEPTH,
        prompts_arrive: bool = False,
    ) -> None:
        self.profile = profile
        self.model = model
        self.costs = CostModel(profile, model)
        self.info = _info(profile, model, num_blocks, vocab_size, max_model_len)
        self.prefill = self._lane("prefill", 1, prompts_arrive)
        self.decode = self._lane("decode", decode_depth, prompts_arrive)
        self._lanes = (self.decode, self.prefill)
        self._next_finish_ns: int | None = None

    @classmethod
    def open(cls, settings: EngineSettings) -> Self:
        """As the engine process starts it: `sim:<gpu>`, the model's row, a pool from the memory left.

        With a checkpoint folder its vocabulary is used, so that the daemon's tokenizer can print the
        made-up tokens. Raises SemipdError: `unknown_device`, `unknown_model`, `unsupported_dtype`,
        `invalid_profile`, `out_of_memory`.
        """
        gpu = known_gpu(settings.device.removeprefix(DEVICE_PREFIX))
        model = known_model(settings.model_name)
        _check_dtype(settings.dtype)
        profile = load_profile(gpu, settings.sim_profile)
        num_blocks = settings.max_num_blocks or pool_blocks(
            profile, model, settings.kv_bytes, settings.kv_fraction or DEFAULT_KV_FRACTION
        )
        vocab_size = _vocab_size(settings.model_dir) if settings.model_dir else model.vocab_size
        return cls(
            profile,
            model,
            num_blocks=num_blocks,
            vocab_size=vocab_size,
            max_model_len=settings.max_model_len,
        )

    def files(self) -> Sequence[int]:
        return ()

    def wake_at_ns(self) -> int | None:
        return self._next_finish_ns

    def stats(self) -> DeviceStats:
        return {"simulated": True, "model": self.model.name}

    def close(self) -> None:
        pass

    def stall(self, lane: SimLane, ns: int, now_ns: int) -> bool:
        """The step that runs takes so much longer. False: none runs."""
        self._advance(now_ns)
        if not lane.queue:
            return False
        step = lane.queue[0]
        step.left_ns += ns / step.slowdown
        self._set_speed(step, step.slowdown, now_ns)
        self._balance(now_ns)
        return True

    def _lane(self, name: LaneName, depth: int, prompts_arrive: bool) -> SimLane:
        return SimLane(
            name,
            depth,
            self.costs,
            self.info.vocab_size,
            self._on_launch,
            self._advance,
            prompts_arrive,
        )

    def _on_launch(self, lane: SimLane, now_ns: int) -> None:
        self._advance(now_ns)
        if self.profile.kernels.drain_on_switch and lane.queue[-1].switches:
            others = (self.prefill if lane is self.decode else self.decode).queue
            lane.queue[-1].after = others[-1] if others else None
        if len(lane.queue) == 1:
            self._start(lane, now_ns)
            self._balance(now_ns)

    def _advance(self, now_ns: int) -> None:
        """Let every step that ends by `now_ns` end, in order; each end may start a step and changes the
        other lane's speed."""
        at_ns = self._next_finish_ns
        while at_ns is not None and at_ns <= now_ns:
            for lane in self._lanes:
                while lane.queue and lane.queue[0].finish_ns <= at_ns:
                    self._finish(lane, at_ns)
            self._balance(at_ns)
            at_ns = self._next_finish_ns

    def _finish(self, lane: SimLane, at_ns: int) -> None:
        step = lane.queue.popleft()
        tokens, logprobs, prompt_logprobs = step.contents
        busy_ns = at_ns - step.start_ns
        lane.finished.append(StepResult(step.step_id, tokens, busy_ns, logprobs, prompt_logprobs))
        if lane.queue:
            self._start(lane, at_ns)
        other = self.prefill if lane is self.decode else self.decode
        if other.queue and other.queue[0].after is step:
            other.queue[0].after = None
            self._start(other, at_ns)

    @staticmethod
    def _start(lane: SimLane, at_ns: int) -> None:
        step = lane.queue[0]
        if step.after is not None and step.after.finish_ns > at_ns:
            return
        step.start_ns = step.since_ns = at_ns
        step.finish_ns = at_ns + max(1, round(step.left_ns))

    def _balance(self, now_ns: int) -> None:
        """Set both running steps' speeds for what runs beside them from now on."""
        decode = _running(self.decode.queue)
        prefill = _running(self.prefill.queue)
        if decode and prefill:
            self._set_speeds(decode, prefill, now_ns)
            self._next_finish_ns = min(decode.finish_ns, prefill.finish_ns)
        elif step := decode or prefill:
            if step.slowdown != 1.0:
                self._set_speed(step, 1.0, now_ns)
            self._next_finish_ns = step.finish_ns
        else:
            self._next_finish_ns = None

    def _set_speeds(self, first: SimStep, second: SimStep, now_ns: int) -> None:
        rate, scale = self.costs.hbm_rate, self.profile.kernels.contention_scale
        self._set_speed(first, slowdown(first.cost, second.cost, rate, scale), now_ns)
        self._set_speed(second, slowdown(second.cost, first.cost, rate, scale), now_ns)

    @staticmethod
    def _set_speed(step: SimStep, factor: float, now_ns: int) -> None:
        step.left_ns -= (now_ns - step.since_ns) / step.slowdown
        step.since_ns = now_ns
        step.slowdown = factor
        step.finish_ns = now_ns + max(1, round(step.left_ns * factor))


def _running(queue: deque[SimStep]) -> SimStep | None:
    """A lane's first step, unless it waits for one on the other lane."""
    return queue[0] if queue and queue[0].finish_ns < NEVER_NS else None


def pool_blocks(profile: Profile, model: SimModel, kv_bytes: int = 0, kv_frac: float = 0.95) -> int:
    """KV blocks, padding included: `kv_bytes`, or that share of what weights and activations leave.

    Raises SemipdError(`out_of_memory`) with the arithmetic when not even one longest block fits.
    """
    gpu = profile.gpu
    activations = int(gpu.memory_bytes * profile.kernels.activation_bytes_frac)
    free = gpu.memory_bytes - model.resident_bytes - activations
    want = kv_bytes or int(free * kv_frac)
    num_blocks = want // (model.kv_bytes_per_token * BLOCK_SIZE)
    if want > free or num_blocks < 2:
        raise SemipdError(
            "out_of_memory",
            f"{gpu.label} has {gpu.memory_bytes / 1e9:.1f} GB: {model.name} takes "
            f"{model.resident_bytes / 1e9:.1f} GB of weights and {activations / 1e9:.1f} GB of activations, "
            f"which leaves {max(free, 0) / 1e9:.1f} GB for a KV pool of {max(want, 0) / 1e9:.1f} GB.",
            "Choose a smaller model, a larger GPU or a smaller kv.bytes.",
            param="kv.bytes" if kv_bytes else "model.name",
        )
    return int(num_blocks)


def split_table(gpu: Gpu) -> tuple[Split, ...]:
    """Every split, by rising decode share: decode takes granules, prefill the rest and the remainder."""
    largest = gpu.num_granules - (0 if gpu.remainder_sms else 1)
    decode = [count * gpu.granule_sms for count in range(1, largest + 1)]
    return tuple(Split(gpu.num_sms - sms, sms) for sms in decode)


def _info(
    profile: Profile, model: SimModel, num_blocks: int, vocab_size: int, max_model_len: int
) -> DeviceInfo:
    gpu = profile.gpu
    return DeviceInfo(
        kind="sim",
        name=f"simulated {gpu.label} running {model.name} (made-up tokens)",
        unit="SM",
        num_units=gpu.num_sms,
        splits=split_table(gpu),
        solo_prefill=Split(gpu.num_sms, 0),
        solo_decode=Split(0, gpu.num_sms),
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        vocab_size=vocab_size or model.vocab_size,
        max_model_len=max_model_len or model.max_model_len,
        dtype="bfloat16",
        memory={
            "weights": model.resident_bytes,
            "kv_pool": num_blocks * BLOCK_SIZE * model.kv_bytes_per_token,
            "activations": int(gpu.memory_bytes * profile.kernels.activation_bytes_frac),
        },
    )


def known_gpu(name: str) -> Gpu:
    """Raises SemipdError(`unknown_device`)."""
    return _row(GPUS, name, "GPU", "unknown_device", "engine.device")


def known_model(name: str) -> SimModel:
    """Raises SemipdError(`unknown_model`)."""
    return _row(MODELS, name.lower(), "model", "unknown_model", "model.name")


def _row(table: dict[str, Row], name: str, what: str, code: str, param: str) -> Row:
    if name in table:
        return table[name]
    message = f"The simulated device knows no {what} {name!r}; it has {', '.join(table)}."
    raise SemipdError(code, message, f"Set {param} to one of them.", param=param)


def _check_dtype(dtype: str) -> None:
    if dtype not in ("auto", "bfloat16"):
        message = f"The simulated device computes in bfloat16; model.dtype is {dtype}."
        raise SemipdError("unsupported_dtype", message, "Use auto or bfloat16.", param="model.dtype")


def _vocab_size(model_dir: str) -> int:
    path = Path(model_dir) / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaneFailed("checkpoint_corrupt", f"The device sim cannot read {path} ({error!r}).") from error
