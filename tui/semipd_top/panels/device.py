"""The device, and what each lane does with its units. NVML's "utilisation" is not here: it is the share of
time in which any kernel ran, and says nothing about SMs."""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

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
    lanes = _lanes(picture, state) if state["lanes"] else []
    body = [line(part) for fact in facts for part in wrap(fact, max(width, 1))]
    body = body[: max(height - 1 - len(lanes), 1)] + lanes
    body += [line(Span("note ", "warn"), note) for note in state["notes"]]
    return framed("Device", (), body, width, height)


def _name(device: Mapping[str, Any]) -> str:
    """Many devices have their units in their name already."""
    units = f"{device['num_units']} {device['unit']}s"
    parts = [device["name"], "" if units in device["name"] else units, device["dtype"]]
    return ", ".join(filter(None, parts))


def _health(device: Mapping[str, Any]) -> list[str]:
    """What the device tells of itself; a device without sensors tells how its memory is divided."""
    stats = device["stats"] or {}
    gpu = stats.get("gpu") or {}
    memory = (device["memory"] or {}).items()
    lines = [
        " ".join(_sensors(gpu))
        or ", ".join(f"{name} {gib(size)} GiB" for name, size in memory if size >= 2**26)
    ]
    if gpu.get("throttled_by"):
        lines.append("clocks held down: " + ", ".join(gpu["throttled_by"]))
    if gpu.get("absent"):
        lines.append(f"no sensors: {gpu['absent']}")
    partition = stats.get("partition") or {}
    if partition and not partition["possible"]:
        lines.append(f"cannot be divided: {partition['reason']}")
    return lines


def _sensors(gpu: Mapping[str, Any]) -> list[str]:
    """What NVML tells; short enough for half of 80 columns."""
    parts: list[str] = []
    if gpu.get("memory_used_bytes") is not None:
        parts.append(f"{gpu['memory_used_bytes'] / 2**30:.0f}/{gpu['memory_total_bytes'] / 2**30:.0f} GiB")
    if gpu.get("power_w") is not None:
        limit_w = gpu.get("power_limit_w")
        parts.append(f"{gpu['power_w']:.0f}{'' if limit_w is None else f'/{limit_w:.0f}'} W")
    if gpu.get("sm_clock_mhz") is not None:
        parts.append(f"{gpu['sm_clock_mhz']} MHz")
    if gpu.get("temperature_c") is not None:
        parts.append(f"{gpu['temperature_c']} °C")
    return parts


def _lanes(picture: Picture, state: Mapping[str, Any]) -> list[Line]:
    sample = picture.samples[-1]
    lines = [line(Span(f"{'lane':8}{'busy':>6}{'step ms':>9}{'steps/s':>9}{'batch':>7}", "dim"))]
    for name, use in (("prefill", sample.prefill), ("decode", sample.decode)):
        lines.append(_lane(name, use, state))
    return lines


def _lane(name: str, use: LaneUse, state: Mapping[str, Any]) -> Line:
    worker = ((state["device"]["stats"] or {}).get("workers") or {}).get(name)
    lost = worker is not None and worker["state"] != "up"
    return line(
        Span(f"{name:8}", "prefill" if name == "prefill" else "decode"),
        f"{percent(use.busy_frac):>6}{millis(use.step_ms):>9}{rate(use.steps_per_s):>9}"
        f"{count(state['lanes'][name]['residents']):>7}",
        Span(f"  worker {worker['state']}" if lost and worker else "", "bad"),
    )
