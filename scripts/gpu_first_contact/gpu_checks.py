"""First contact with a GPU: what an SM partition made of green contexts really does.

    CUDA_DEVICE_MAX_CONNECTIONS=32 python gpu_checks.py --out gpu_checks.json

Sections run in one child process, each under a time limit. The results are written after every
section; when the child hangs or dies, the section is marked and a new child does the rest.

Not yet run on a GPU: the logic was tried with a mocked driver, the probes compiled ahead of time for sm_90.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import importlib.metadata
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # must precede CUDA initialisation

DECODE_GROUPS = (2, 3, 4, 5, 6, 8, 10)
SPIN_NS = (200_000, 1_000_000)
BLOCK = 4096
GEMM = (4096, 8192, 8192)
SMALL_GEMM = (512, 4096, 14336)


class Lab:
    """The device, the compiled probes and, from first use, the table of splits."""

    def __init__(self) -> None:
        import probes
        import sm_split
        import torch
        from cuda.bindings import driver

        self.torch, self.drv, self.split, self.probes = torch, driver, sm_split, probes
        torch.cuda.init()
        torch.cuda.set_device(0)
        x = torch.randn(256, 256, device="cuda", dtype=torch.bfloat16)
        (x @ x).sum().item()  # cuBLAS handle in the primary context
        self.total_sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.smids = torch.empty(self.total_sms * 16, dtype=torch.int32, device="cuda")
        self.stamps = torch.zeros(64, dtype=torch.int64, device="cuda")
        for spin_ns in SPIN_NS:
            probes.smid_census[(1,)](self.smids, SPIN_NS=spin_ns, num_warps=1)
        probes.stamp[(1,)](self.stamps, num_warps=1)
        torch.cuda.synchronize()

    @functools.cached_property
    def table(self) -> Any:
        _, probe = self.split.probe(self.drv)
        ks = [k for k in DECODE_GROUPS if k < len(probe.groups)]
        table = self.split.build(self.drv, ks)
        self.split.attach_torch(table, self.torch, self.torch.device("cuda:0"))
        return table

    @functools.cached_property
    def solo(self) -> Any:
        return self.torch.cuda.Stream()

    @functools.cached_property
    def gemm_operands(self) -> dict[tuple[int, int, int], tuple[Any, Any, Any]]:
        t, out = self.torch, {}
        for m, k, n in (GEMM, SMALL_GEMM):
            shapes = ((m, k), (k, n), (m, n))
            out[m, k, n] = tuple(t.randn(s, device="cuda", dtype=t.bfloat16) for s in shapes)
        t.cuda.synchronize()
        return out

    @functools.cached_property
    def stream_source(self) -> Any:
        source = self.torch.ones(2 << 28, dtype=self.torch.int32, device="cuda")  # 2 GiB
        self.torch.cuda.synchronize()
        return source

    def lanes(self) -> list[tuple[Any, int]]:
        """Every lane stream with its SM count, smallest first, and the whole device."""
        lanes = {s.decode.sm_count: s.decode.stream for s in self.table.splits}
        lanes |= {s.prefill.sm_count: s.prefill.stream for s in self.table.splits}
        return [(lanes[n], n) for n in sorted(lanes)] + [(self.solo, self.total_sms)]

    def extra_lane(self, resources: list[Any]) -> Any:
        """A lane outside the table, kept until exit: torch remembers its stream."""
        device = self.split.ck(self.drv.cuDeviceGet(0))
        lane = self.split.make_lane(self.drv, device, resources, 0)
        lane.stream = self.torch.cuda.ExternalStream(int(lane.raw), device="cuda:0")
        self.table.lanes.append(lane)
        return lane

    def free_bytes(self) -> int:
        self.torch.cuda.synchronize()
        return int(self.torch.cuda.mem_get_info()[0])

    def on(self, stream: Any) -> Any:
        return self.torch.cuda.stream(stream)

    def timer(self) -> Any:
        return self.torch.cuda.Event(enable_timing=True)

    def spin(self, ctas: int, spin_ns: int) -> None:
        self.probes.smid_census[(ctas,)](self.smids, SPIN_NS=spin_ns, num_warps=1)

    def stamp(self, slot: int) -> None:
        self.probes.stamp[(1,)](self.stamps[2 * slot :], num_warps=1)  # stays 16-byte aligned

    def stamped_ns(self) -> list[int]:
        self.torch.cuda.synchronize()
        return [int(v) for v in self.stamps.tolist()[::2]]

    def census(self, launch: Callable[[], None]) -> set[int]:
        """The SMs that a launch of `smid_census` over all of `smids` really used."""
        self.smids.fill_(-1)
        self.torch.cuda.synchronize()
        launch()
        self.torch.cuda.synchronize()
        return set(self.smids[: self.total_sms * 8].tolist())

    def stream_census(self, stream: Any) -> set[int]:
        def launch() -> None:
            with self.on(stream):
                self.spin(self.total_sms * 8, SPIN_NS[0])

        return self.census(launch)

    def read(self, sms: int, stages: int, per_sm: int, num_blocks: int, first: int = 0) -> None:
        source, grid = self.stream_source[first * BLOCK :], (sms * per_sm,)
        args = (source, self.smids, num_blocks)  # smids: any scratch of one int per CTA
        self.probes.read_bw[grid](*args, BLOCK=BLOCK, STAGES=stages, num_warps=4)

    def mm(self, shape: tuple[int, int, int], times: int = 1) -> None:
        a, b, c = self.gemm_operands[shape]
        for _ in range(times):
            self.torch.mm(a, b, out=c)

    def gemm_tflops(self, stream: Any, shape: tuple[int, int, int], times: int = 10) -> float:
        start, end = self.timer(), self.timer()
        with self.on(stream):
            self.mm(shape, 3)
            start.record()
            self.mm(shape, times)
            end.record()
        stream.synchronize()
        m, k, n = shape
        return float(2 * m * k * n * times / start.elapsed_time(end) / 1e9)


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


def bandwidth(lab: Lab) -> dict[str, Any]:
    """Streaming read in GB/s against SM count, alone and beside bf16 GEMMs on the partner lane."""
    num_blocks = lab.stream_source.numel() // BLOCK
    gigabytes = lab.stream_source.numel() * 4 / 1e9
    variants = ((1, 8), (4, 2), (6, 2))

    def rate(stream: Any, sms: int, stages: int, per_sm: int) -> int:
        start, end = lab.timer(), lab.timer()
        with lab.on(stream):
            start.record()
            for _ in range(2):
                lab.read(sms, stages, per_sm, num_blocks)
            end.record()
        end.synchronize()
        return round(2 * gigabytes / start.elapsed_time(end) * 1e3)

    out: dict[str, Any] = {"alone": {}, "beside_gemm": {}}
    for stages, per_sm in variants:
        rate(lab.solo, lab.total_sms, stages, per_sm)
    for stream, sms in lab.lanes():
        rates = {f"stages={s} ctas={c}": rate(stream, sms, s, c) for s, c in variants}
        out["alone"][sms] = rates
    for s in lab.table.splits:
        alone = lab.gemm_tflops(s.prefill.stream, GEMM)
        with lab.on(s.prefill.stream):
            lab.mm(GEMM, 40)
        beside = rate(s.decode.stream, s.decode.sm_count, 6, 2)
        lab.torch.cuda.synchronize()
        with lab.on(s.decode.stream):
            for _ in range(60):
                lab.read(s.decode.sm_count, 6, 2, num_blocks)
        out["beside_gemm"][s.decode.sm_count] = {
            "read_gbps": [out["alone"][s.decode.sm_count]["stages=6 ctas=2"], beside],
            "gemm_tflops": [round(alone), round(lab.gemm_tflops(s.prefill.stream, GEMM))],
        }
        lab.torch.cuda.synchronize()
    return out


def gemm(lab: Lab) -> dict[str, Any]:
    """bf16 GEMM on every lane, with and without the process-wide SM carve-out."""
    torch, out = lab.torch, {}
    for stream, sms in lab.lanes():
        row: dict[str, float] = {}
        for library, carve_out in (("cublas", 0), ("cublaslt", 0), ("cublaslt", 1)):
            if carve_out and sms == lab.total_sms:
                continue
            torch.backends.cuda.preferred_blas_library(library)
            torch._C._set_sm_carveout_experimental(lab.total_sms - sms if carve_out else None)
            try:
                for shape in (GEMM, SMALL_GEMM):
                    name = f"{library}{' carve-out' if carve_out else ''} {shape[0]}"
                    row[name] = round(lab.gemm_tflops(stream, shape), 1)
            finally:
                torch._C._set_sm_carveout_experimental(None)
                torch.backends.cuda.preferred_blas_library("cublas")
        out[str(sms)] = row
    return out


def interference(lab: Lab) -> dict[str, Any]:
    """A decode-like graph (reads 2 GiB) on 40 SMs while GEMMs run elsewhere; step time in ms."""
    torch = lab.torch
    split = min(lab.table.splits, key=lambda s: abs(s.decode.sm_count - 40))
    plain_high, plain_low = torch.cuda.Stream(priority=-1), torch.cuda.Stream(priority=0)
    slice_blocks = lab.stream_source.numel() // BLOCK // 8

    def capture(stream: Any, sms: int) -> Any:
        with lab.on(stream):
            lab.read(sms, 6, 2, slice_blocks)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(8):
                lab.read(sms, 6, 2, slice_blocks, first=i * slice_blocks)
        return graph

    def steps_ms(stream: Any, graph: Any, storm: Any) -> dict[str, float]:
        torch.cuda.synchronize()
        storm_end, marks = lab.timer(), [lab.timer() for _ in range(101)]
        with lab.on(stream):
            graph.replay()
        if storm is not None:
            with lab.on(storm):
                lab.mm(GEMM, 400)
                storm_end.record()
        with lab.on(stream):
            marks[0].record()
            for mark in marks[1:]:
                graph.replay()
                mark.record()
        torch.cuda.synchronize()
        pairs = list(itertools.pairwise(marks))
        if storm is not None:
            pairs = [(a, b) for a, b in pairs if b.elapsed_time(storm_end) > 0]
        times = sorted(a.elapsed_time(b) for a, b in pairs)
        if not times:
            return {"steps": 0}
        p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
        return {"steps": len(times), "p50": statistics.median(times), "p99": p99}

    lane, sms = split.decode.stream, split.decode.sm_count
    lane_graph, plain_graph = capture(lane, sms), capture(plain_high, lab.total_sms)
    for storm in (split.prefill.stream, plain_low):
        lab.gemm_tflops(storm, GEMM)
    return {
        "decode_sms": sms,
        "lane, alone": steps_ms(lane, lane_graph, None),
        "lane, GEMMs on partner lane": steps_ms(lane, lane_graph, split.prefill.stream),
        "lane, GEMMs on plain stream": steps_ms(lane, lane_graph, plain_low),
        "plain stream, alone": steps_ms(plain_high, plain_graph, None),
        "plain stream, GEMMs on plain stream": steps_ms(plain_high, plain_graph, plain_low),
    }


def remainder(lab: Lab) -> dict[str, Any]:
    """Prefill GEMM with and without the remainder SMs, which have no cluster guarantee."""
    split = min(lab.table.splits, key=lambda s: abs(s.decode.sm_count - 40))
    bare = lab.extra_lane(lab.table.groups[split.k :])
    out: dict[str, Any] = {}
    for lane in (split.prefill, bare):
        rates = {s[0]: round(lab.gemm_tflops(lane.stream, s), 1) for s in (GEMM, SMALL_GEMM)}
        out[str(lane.sm_count)] = rates
    return out


def graph_cost(lab: Lab) -> dict[str, Any]:
    """Memory and time of a captured decode step of 256 kernels, four per split."""
    torch = lab.torch
    graphs: list[tuple[Any, Any]] = []
    capture_ms: list[float] = []
    before = lab.free_bytes()
    for s in lab.table.splits:
        for _ in range(4):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=s.decode.stream):
                began = time.perf_counter()
                for _ in range(256):
                    lab.stamp(3)
            capture_ms.append((time.perf_counter() - began) * 1e3)
            graphs.append((s.decode.stream, graph))
    captured = lab.free_bytes()
    first_us: list[float] = []
    later_us: list[float] = []
    gpu_us: list[float] = []
    for times in (first_us, later_us):
        for stream, graph in graphs:
            start, end = lab.timer(), lab.timer()
            torch.cuda.synchronize()
            with lab.on(stream):
                start.record()
                began = time.perf_counter()
                graph.replay()
                times.append((time.perf_counter() - began) * 1e6)
                end.record()
            end.synchronize()
            gpu_us.append(start.elapsed_time(end) * 1e3)
    return {
        "num_graphs": len(graphs),
        "kernels_per_graph": 256,
        "capture_ms_median_max": [statistics.median(capture_ms), max(capture_ms)],
        "mib_per_graph_captured": (before - captured) / 2**20 / len(graphs),
        "mib_per_graph_replayed": (before - lab.free_bytes()) / 2**20 / len(graphs),
        "replay_cpu_us_first_later": [statistics.median(first_us), statistics.median(later_us)],
        "replay_gpu_us_median": statistics.median(gpu_us[len(graphs) :]),
    }


def group_ids(lab: Lab) -> dict[str, Any]:
    """Which SMs each group of the one split call holds: 16 more contexts, kept until exit."""
    table = lab.table
    resources = table.groups + ([table.remainder] if table.remainder is not None else [])
    lanes = [lab.extra_lane([r]) for r in resources]
    return {"smids": [sorted(lab.stream_census(lane.stream)) for lane in lanes]}


def teardown(lab: Lab) -> dict[str, Any]:
    before, began = lab.free_bytes(), time.perf_counter()
    lab.split.destroy(lab.drv, lab.table)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "mib_back": (lab.free_bytes() - before) / 2**20}


SECTIONS: dict[str, Callable[[Lab], dict[str, Any]]] = {
    f.__name__: f
    for f in (
        info, build, sm_sets, graph_binding, queue_alias, switch_cost, bandwidth, gemm,
        interference, remainder, graph_cost, group_ids, teardown,
    )
}  # fmt: skip


def store(out: Path, name: str, result: dict[str, Any]) -> None:
    results = json.loads(out.read_text()) if out.exists() else {}
    results[name] = result
    out.write_text(json.dumps(results, indent=1, default=str))


def child(names: list[str], out: Path, limit_s: float) -> None:
    faulthandler.dump_traceback_later(limit_s, exit=True)
    lab = Lab()
    for name in names:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        began, sound = time.perf_counter(), True
        try:
            result = SECTIONS[name](lab)
        except Exception:
            result = {"error": traceback.format_exc(limit=-4)}
        try:
            lab.torch.cuda.synchronize()
        except Exception as error:  # a sticky CUDA error: this process is of no more use
            result["after"], sound = repr(error), False
        store(out, name, result | {"section_s": round(time.perf_counter() - began, 2)})
        sys.stderr.write(f"{name} {time.perf_counter() - began:.2f} s\n")
        if not sound:
            os._exit(3)
    os._exit(0)  # skip destructors that may touch destroyed contexts


def parent(names: list[str], out: Path, limit_s: float) -> None:
    out.unlink(missing_ok=True)
    idle_children = 0
    while names and idle_children < 2:
        options = ["--out", str(out), "--limit-s", str(limit_s), "--child", ",".join(names)]
        code = subprocess.run([sys.executable, __file__, *options], check=False).returncode
        done = json.loads(out.read_text()) if out.exists() else {}
        left = [n for n in names if n not in done]
        idle_children = idle_children + 1 if left == names else 0
        if left == names or (left and code not in (0, 3)):
            store(out, left[0], {"error": f"the process ended with status {code}"})
            left = left[1:]
        names = left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--limit-s", type=float, default=40.0)
    parser.add_argument("--child", default="")
    args = parser.parse_args()
    if args.child:
        child(args.child.split(","), args.out, args.limit_s)
    parent(args.sections.split(","), args.out, args.limit_s)


if __name__ == "__main__":
    main()
