"""What all sections share: the device, the compiled probes, the splits, and how things are timed there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

DECODE_GROUPS = (2, 3, 4, 5, 6, 8, 10)
SPIN_NS = (200_000, 1_000_000)
BLOCK = 4096
GEMM = (4096, 8192, 8192)
SMALL_GEMM = (512, 4096, 14336)
DECODE_GEMMS = ((64, 4096, 14336), (16, 4096, 14336))
GEMMS = (GEMM, SMALL_GEMM, *DECODE_GEMMS)


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
        """Activations, weights as the engine has them ([n, k], transposed: other kernels of cuBLAS) and
        results."""
        t, out = self.torch, {}
        for m, k, n in GEMMS:
            shapes = ((m, k), (n, k), (m, n))
            a, weights, c = (t.randn(s, device="cuda", dtype=t.bfloat16) for s in shapes)
            out[m, k, n] = a, weights.t(), c
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
