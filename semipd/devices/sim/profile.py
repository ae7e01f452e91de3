"""What the software on the GPU achieves: the constants of the roofline, each with its source, and a file
of measured values that replaces any of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from semipd.core.errors import SemipdError
from semipd.devices.sim.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Kernels:
    """Properties of kernels, launches and the host. "Estimate" marks what nobody has measured for us.

    Attributes:
        hbm_frac: share of the peak bandwidth that streaming kernels reach. A device-to-device copy on an
            H200 moves 4.3 of 4.8 TB/s.
        gemm_frac: share of the peak rate of a large bf16 matrix product, tile waves apart. torch.matmul
            of 8192 x 8192 x 8192 random values on an H200: 769 to 798 TFLOP/s of 989.
        tile_rows, tile_columns: output tile of a matrix kernel; 128 x 128 is the smaller of the two
            common choices on Hopper. Smaller batches take a tile of their own height.
        attention_frac: the same for prefill attention. Triton's forward kernel at 8192 tokens on an
            H100: 469 TFLOP/s (tritonbench #141).
        loaded_latency_ns: from request to data under load, 800 ns on Hopper (Little's law estimate).
        attention_inflight_bytes: what a decode attention kernel keeps in flight per SM. Estimate: two
            thread blocks with one 16 KiB tile each. Kernels differ most here: the curves published for
            SGLang scale almost as 1/SMs (less in flight), a deep TMA pipeline reaches 84 KiB and more.
        layer_kernels: kernels per layer: two norms, four linears, RoPE with the KV write, attention and
            its split-KV merge, activation.
        kernel_gap_ns: between dependent kernels of a stream or graph, when nothing computes. Estimate.
        launch_ns: host time per eager launch; Triton's dispatch takes about 11 us (tritonbench #1002).
            Decode-only steps replay a CUDA graph and do not pay it.
        step_ns: per step: metadata copy, graph replay or first launch, sampling. Estimate.
        switch_ns: a lane's first step on another split: event record, stream wait. Estimate (2 to 4 us).
        activation_bytes_frac: share of the memory kept for activations, workspaces and graphs. Estimate.
        contention_scale: multiplies what a lane loses to the other one's memory traffic; 1 is the
            bandwidth model of `contention`, 0 switches it off.
        compute_exponent: computing grows with a lane's share of the SMs to this power. 1: proportional
            (Bullet's model, arXiv 2504.19516). Below 1 a small lane loses less than its share, as it may
            clock higher: semi-PD's released fit has 77 % of the speed at 70 % of the SMs (0.73), Nexus
            (arXiv 2507.06608) 10 % less time from 70 to 80 % (0.79). A measured curve replaces it.
        prior_attention_frac: speed of a chunk's attention to the tokens before it, as a share of
            `attention_frac`. 1: as fast as within the chunk.
        serial_host_ns: host work between two steps during which the lane stands still, as in an engine that
            schedules only after it has the last step's tokens.
        drain_on_switch: 1: a lane's first step on another split waits for what is in flight on the other
            lane, as in SGLang's multiplexing, which synchronises both streams.
    """

    hbm_frac: float = 0.90
    gemm_frac: float = 0.80
    tile_rows: int = 128
    tile_columns: int = 128
    attention_frac: float = 0.47
    loaded_latency_ns: float = 800.0
    attention_inflight_bytes: float = 32 * 1024.0
    layer_kernels: int = 10
    kernel_gap_ns: float = 1500.0
    launch_ns: float = 11_000.0
    step_ns: float = 50_000.0
    switch_ns: float = 4_000.0
    activation_bytes_frac: float = 0.05
    contention_scale: float = 1.0
    compute_exponent: float = 1.0
    prior_attention_frac: float = 1.0
    serial_host_ns: float = 0.0
    drain_on_switch: int = 0


Curve = tuple[tuple[int, float], ...]
"""(SMs, value) by rising SMs."""

Row = TypeVar("Row", Gpu, Kernels)

_MAY_BE_ZERO = {
    "remainder_sms",
    "kernel_gap_ns",
    "launch_ns",
    "step_ns",
    "switch_ns",
    "activation_bytes_frac",
    "contention_scale",
    "serial_host_ns",
    "drain_on_switch",
}

CURVES = ("weight_bytes_per_s", "attention_bytes_per_s", "gemm_flops")


@dataclass(frozen=True, slots=True)
class Profile:
    """A GPU and its kernels. `curves` hold measured values by SM count and replace the formulas:
    bandwidth of streaming weights, bandwidth of decode attention, rate of a large matrix product."""

    gpu: Gpu
    kernels: Kernels = Kernels()
    curves: Mapping[str, Curve] = field(default_factory=dict)

    def scaled(self, *, bandwidth: float = 1.0, contention: float = 1.0) -> "Profile":
        """The same with more or less memory bandwidth or contention, to see what a result hangs on."""
        curves = {
            name: tuple((sms, value * bandwidth) for sms, value in curve) if "bytes" in name else curve
            for name, curve in self.curves.items()
        }
        return Profile(
            replace(self.gpu, hbm_bytes_per_s=self.gpu.hbm_bytes_per_s * bandwidth),
            replace(self.kernels, contention_scale=self.kernels.contention_scale * contention),
            curves,
        )


def load_profile(gpu: Gpu, path: str | Path | None) -> Profile:
    """The table's row, with the values of a JSON file in place of what it names.

    The file: {"gpu": {field: value}, "kernels": {field: value}, "curves": {name: [[sms, value], ...]}},
    every part optional. Raises SemipdError(`invalid_profile`) for unknown names and wrong values.
    """
    if not path:
        return Profile(gpu)
    data = _read(Path(path))
    for part in data:
        if part not in ("gpu", "kernels", "curves"):
            raise _refusal(path, f"has no part called {part!r}; it may hold gpu, kernels and curves")
    return Profile(
        _override(gpu, data.get("gpu", {}), path),
        _override(Kernels(), data.get("kernels", {}), path),
        _curves(data.get("curves", {}), path),
    )


def interpolate(curve: Curve, sms: int) -> float:
    """Straight lines between the points; through the origin below the first, flat above the last."""
    previous = (0, 0.0)
    for point in curve:
        if sms <= point[0]:
            share = (sms - previous[0]) / (point[0] - previous[0])
            return previous[1] + share * (point[1] - previous[1])
        previous = point
    return previous[1]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"cannot be read ({error})") from error
    if not isinstance(data, dict) or not all(isinstance(part, dict) for part in data.values()):
        raise _refusal(path, "is not a map of maps")
    return data


def _override(row: Row, values: Mapping[str, Any], path: str | Path) -> Row:
    known = {f.name: type(getattr(row, f.name)) for f in fields(row)}
    for name, value in values.items():
        if name not in known:
            raise _refusal(path, f"names {name!r}; known are {', '.join(known)}")
        if not _fits(name, value, known[name]):
            raise _refusal(path, f"gives {name} = {value!r}, which is no {known[name].__name__} above 0")
    return replace(row, **values)


def _fits(name: str, value: object, wanted: type) -> bool:
    if wanted is str:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int if wanted is int else (int, float)):
        return False
    return value > 0 or (value == 0 and name in _MAY_BE_ZERO)


def _curves(data: Mapping[str, Any], path: str | Path) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for name, points in data.items():
        if name not in CURVES:
            raise _refusal(path, f"names the curve {name!r}; known are {', '.join(CURVES)}")
        try:
            curve = tuple((int(sms), float(value)) for sms, value in points)
        except (TypeError, ValueError) as error:
            raise _refusal(path, f"gives {name} as something else than [[sms, value], ...]") from error
        sms = [point[0] for point in curve]
        if not curve or sms != sorted(set(sms)) or sms[0] < 1 or min(value for _, value in curve) <= 0:
            raise _refusal(path, f"gives {name} without rising SM counts and positive values")
        curves[name] = curve
    return curves


def _refusal(path: str | Path, what: str) -> SemipdError:
    hint = "docs/policies.md shows the form of a profile."
    return SemipdError("invalid_profile", f"The profile {path} {what}.", hint, param="engine.sim_profile")
