"""Sections about rates: bandwidth and products on so many SMs, alone and beside the other lane; graphs."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

from lab import BLOCK, GEMM, GEMMS, SMALL_GEMM, Lab


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
        gb_per_s: float = 2 * gigabytes / start.elapsed_time(end) * 1e3
        return round(gb_per_s)

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
                for shape in GEMMS:
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
