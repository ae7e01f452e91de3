"""Sections about the partition: where kernels run, what a graph keeps, what a switch costs."""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from typing import Any

from lab import SPIN_NS, Lab


def info(lab: Lab) -> dict[str, Any]:
    drv, ck, torch = lab.drv, lab.split.ck, lab.torch
    full = ck(drv.cuDeviceGetDevResource(ck(drv.cuDeviceGet(0)), drv.CUdevResourceType(1)))
    packages = ("torch", "triton", "cuda-bindings", "nvidia-cublas", "nvidia-cuda-runtime")
    out: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(0),
        "driver_api": ck(drv.cuDriverGetVersion()),
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "num_sms": full.sm.smCount,
        "min_partition_sms": full.sm.minSmPartitionSize,
        "alignment_sms": full.sm.smCoscheduledAlignment,
        "stream_priorities": torch.cuda.Stream.priority_range(),
        "splits": {},
    }
    for flags in (0, 1, 2):
        for minimum in (2, 4, 8, 16, 32, 64):
            try:
                _, n, _ = ck(drv.cuDevSmResourceSplitByCount(0, full, flags, minimum))
                groups, n, rest = ck(drv.cuDevSmResourceSplitByCount(n, full, flags, minimum))
                row = {"groups": n, "group_sms": groups[0].sm.smCount, "rest_sms": rest.sm.smCount}
            except Exception as error:
                row = {"error": repr(error)}
            out["splits"][f"flags={flags} min={minimum}"] = row
    return out


def build(lab: Lab) -> dict[str, Any]:
    before, began = lab.free_bytes(), time.perf_counter()
    table = lab.table
    seconds = time.perf_counter() - began
    after_build = lab.free_bytes()
    for stream, _ in lab.lanes():
        lab.stream_census(stream)
    return {
        "groups": len(table.groups),
        "group_sms": table.granule,
        "remainder_sms": table.remainder.sm.smCount if table.remainder is not None else 0,
        "splits_decode_prefill": [(s.decode.sm_count, s.prefill.sm_count) for s in table.splits],
        "num_contexts": len(table.lanes),
        "seconds": seconds,
        "mib": (before - after_build) / 2**20,
        "mib_after_first_launches": (before - lab.free_bytes()) / 2**20,
    }


def sm_sets(lab: Lab) -> dict[str, Any]:
    out: dict[str, Any] = {"plain_stream_sms": len(lab.stream_census(lab.solo)), "splits": []}
    previous: set[int] = set()
    for s in lab.table.splits:
        decode, prefill = (lab.stream_census(x.stream) for x in (s.decode, s.prefill))
        row = {
            "decode": [s.decode.sm_count, len(decode)],
            "prefill": [s.prefill.sm_count, len(prefill)],
            "disjoint": not decode & prefill,
            "union": len(decode | prefill),
            "nested": previous <= decode,
            "decode_smids": sorted(decode),
        }
        out["splits"].append(row)
        previous = decode
    return out


def graph_binding(lab: Lab) -> dict[str, Any]:
    """A graph captured on a lane must keep the lane's SMs when replayed on another stream."""
    torch, split = lab.torch, lab.table.splits[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=split.decode.stream):
        lab.spin(lab.total_sms * 8, SPIN_NS[0])
    want = lab.stream_census(split.decode.stream)
    out: dict[str, Any] = {"want_sms": split.decode.sm_count}
    replayed_on = {"own": split.decode.stream, "prefill": split.prefill.stream, "plain": lab.solo}
    for name, stream in replayed_on.items():

        def replay(stream: Any = stream) -> None:
            with lab.on(stream):
                graph.replay()

        got = lab.census(replay)
        out[name] = {"sms": len(got), "same_set": got == want}
    return out


def queue_alias(lab: Lab) -> dict[str, Any]:
    """A deep queue spins on one lane; a one-CTA stamp on the other must run meanwhile."""

    def delay_us(busy: Any, probe: Any) -> tuple[float, float]:
        lab.torch.cuda.synchronize()
        with lab.on(busy.stream):
            lab.stamp(0)
            for _ in range(4):
                lab.spin(busy.sm_count * 4, SPIN_NS[1])
            lab.stamp(1)
        with lab.on(probe.stream):
            lab.stamp(2)
        begin, end, probed = lab.stamped_ns()[:3]
        return (probed - begin) / 1e3, (end - begin) / 1e3

    out: dict[str, Any] = {"connections": os.environ["CUDA_DEVICE_MAX_CONNECTIONS"]}
    for direction in ("prefill busy", "decode busy"):
        delays, serialised = {}, []
        for i in lab.table.splits:
            for j in lab.table.splits:
                lanes = (i.prefill, j.decode)
                busy, probe = lanes if direction == "prefill busy" else lanes[::-1]
                name = f"p{i.prefill.sm_count} d{j.decode.sm_count}"
                waited_us, busy_us = delay_us(busy, probe)
                delays[name] = round(waited_us)
                if waited_us > 0.5 * busy_us:
                    serialised.append(name)
        out[direction] = {
            "pairs": len(delays),
            "serialised": serialised,
            "same_split_serialised": [n for n in serialised if _same_split(n, lab.total_sms)],
            "delay_us_median": statistics.median(delays.values()),
            "delay_us_max": max(delays.values()),
        }
    return out


def _same_split(name: str, total_sms: int) -> bool:
    prefill, decode = name.split()
    return int(prefill[1:]) + int(decode[1:]) == total_sms


def switch_cost(lab: Lab) -> dict[str, Any]:
    """Moving the decode lane: record(old), wait(new), replay(new). CPU cost, then GPU gap."""
    torch = lab.torch
    streams = [s.decode.stream for s in lab.table.splits]
    graphs = [torch.cuda.CUDAGraph() for _ in streams]
    for stream, graph in zip(streams, graphs, strict=True):
        with torch.cuda.graph(graph, stream=stream):
            lab.stamp(1)
    event = [torch.cuda.Event() for _ in streams]

    def move(a: int, b: int) -> None:
        if a != b:
            event[a].record(streams[a])
            streams[b].wait_event(event[a])

    def cpu_us(hop: int, with_replay: bool) -> float:
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for i in range(100):
                a, b = i * hop % len(streams), (i + 1) * hop % len(streams)
                move(a, b)
                if with_replay:
                    with lab.on(streams[b]):
                        graphs[b].replay()
            times.append((time.perf_counter() - began) * 1e4)
        return statistics.median(times)

    def gap_us(a: int, b: int) -> list[float]:
        """From the end of the last kernel on a to the start of the graph on b, all enqueued."""
        gaps = []
        for _ in range(50):
            with lab.on(streams[a]):
                lab.spin(1, SPIN_NS[0])
                lab.stamp(0)
            move(a, b)
            with lab.on(streams[b]):
                graphs[b].replay()
            begin, end = lab.stamped_ns()[:2]
            gaps.append((end - begin) / 1e3)
        return [round(statistics.median(gaps), 2), round(max(gaps), 2)]

    last = len(streams) - 1
    return {
        "cpu_us": {
            "replay, same lane": cpu_us(0, True),
            "move and replay": cpu_us(1, True),
            "move only": cpu_us(1, False),
        },
        "gpu_gap_us_median_max": {
            "same lane": gap_us(0, 0),
            "next split": gap_us(0, 1),
            "far split": gap_us(0, last),
            "back": gap_us(last, 0),
        },
    }
