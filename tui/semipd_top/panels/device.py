"""The device, and what each lane does with its units. NVML's "utilisation" is not here: it is the share of
time in which any kernel ran, and says nothing about SMs."""

from textwrap import wrap

from semipd.core.split import LaneName
from semipd.core.state.device import DeviceState, DeviceStats, GpuStats, WorkerState
from semipd.core.state.engine import LaneDocument
from semipd_top.panels.frame import framed, waiting
from semipd_top.picture.history import LaneUse
from semipd_top.picture.picture import Picture
from semipd_top.text.lines import Line, Span, line
from semipd_top.text.numbers import count, gib, millis, percent, rate


def device_panel(picture: Picture, width: int, height: int) -> list[Line]:
    state = picture.state
    if state is None or state["device"] is None:
        return framed("Device", (), waiting("No engine has opened a device yet."), width, height)
    device = state["device"]
    facts = [_name(device), *_health(device)]
    lanes = _lanes(picture, device, state["lanes"]) if state["lanes"] else []
    body = [line(part) for fact in facts for part in wrap(fact, max(width, 1))]
    body = body[: max(height - 1 - len(lanes), 1)] + lanes
    body += [line(Span("note ", "warn"), note) for note in state["notes"]]
    return framed("Device", (), body, width, height)


def _name(device: DeviceState) -> str:
    """Many devices have their units in their name already."""
    units = f"{device['num_units']} {device['unit']}s"
    parts = [device["name"], "" if units in device["name"] else units, device["dtype"]]
    return ", ".join(filter(None, parts))


def _health(device: DeviceState) -> list[str]:
    """What the device tells of itself; a device without sensors tells how its memory is divided."""
    stats: DeviceStats = device["stats"] or {}
    gpu: GpuStats = stats.get("gpu", {})
    lines = [
        " ".join(_sensors(gpu))
        or ", ".join(
            f"{name} {gib(size)} GiB" for name, size in (device["memory"] or {}).items() if size >= 2**26
        )
    ]
    if reasons := gpu.get("throttled_by"):
        lines.append("clocks held down: " + ", ".join(reasons))
    if absent := gpu.get("absent"):
        lines.append(f"no sensors: {absent}")
    partition = stats.get("partition")
    if partition is not None and not partition["possible"]:
        lines.append(f"cannot be divided: {partition['reason']}")
    return lines


def _sensors(gpu: GpuStats) -> list[str]:
    """What NVML tells; short enough for half of 80 columns."""
    parts: list[str] = []
    used_bytes, total_bytes = gpu.get("memory_used_bytes"), gpu.get("memory_total_bytes")
    if used_bytes is not None and total_bytes is not None:
        parts.append(f"{used_bytes / 2**30:.0f}/{total_bytes / 2**30:.0f} GiB")
    if (power_w := gpu.get("power_w")) is not None:
        limit_w = gpu.get("power_limit_w")
        parts.append(f"{power_w:.0f}{'' if limit_w is None else f'/{limit_w:.0f}'} W")
    if (clock_mhz := gpu.get("sm_clock_mhz")) is not None:
        parts.append(f"{clock_mhz} MHz")
    if (temperature_c := gpu.get("temperature_c")) is not None:
        parts.append(f"{temperature_c} °C")
    return parts


def _lanes(picture: Picture, device: DeviceState, lanes: dict[LaneName, LaneDocument]) -> list[Line]:
    sample = picture.samples[-1]
    workers = (device["stats"] or {}).get("workers", {})
    lines = [line(Span(f"{'lane':8}{'busy':>6}{'step ms':>9}{'steps/s':>9}{'batch':>7}", "dim"))]
    uses: dict[LaneName, LaneUse] = {"prefill": sample.prefill, "decode": sample.decode}
    return lines + [_lane(name, use, lanes[name], workers.get(name)) for name, use in uses.items()]


def _lane(name: LaneName, use: LaneUse, lane: LaneDocument, worker: WorkerState | None) -> Line:
    lost = worker is not None and worker["state"] != "up"
    return line(
        Span(f"{name:8}", name),
        f"{percent(use.busy_frac):>6}{millis(use.step_ms):>9}{rate(use.steps_per_s):>9}"
        f"{count(lane['residents']):>7}",
        Span(f"  worker {worker['state']}" if lost and worker else "", "bad"),
    )
