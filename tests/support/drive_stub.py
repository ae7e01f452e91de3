"""Drives the real cuda-bindings over a stub of libcuda.so.1 and prints what it saw as JSON. A process of its
own, with the folder of the stub in LD_LIBRARY_PATH."""

import ctypes
import json
import threading
from types import SimpleNamespace
from typing import Any

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.bindings import CudaDriver
from semipd.devices.cuda.driver.interface import CudaError, Stream
from semipd.devices.cuda.split.streams import Lanes

stub = ctypes.CDLL("libcuda.so.1")


def sms_of(stream: Stream) -> frozenset[int]:
    bits = ctypes.create_string_buffer(17)
    stub.stub_sms(ctypes.c_void_p(stream), bits)
    return frozenset(sm for sm in range(132) if bits.raw[sm // 8] >> sm % 8 & 1)


class StubDriver(CudaDriver):
    """There are no kernels, so the stub tells the SMs itself."""

    def placement(self, stream: Stream, num_ctas: int, spin_ns: int) -> frozenset[int]:
        return sms_of(stream)

    def occupy(self, stream: Stream, num_ctas: int, spin_ns: int) -> None:
        """Nothing runs, but the first question about any event finds it running."""


def main() -> dict[str, Any]:
    from cuda.bindings import driver as api

    torch = SimpleNamespace(cuda=SimpleNamespace(set_device=lambda ordinal: None))
    driver = StubDriver(api, torch, 0)
    lanes = Lanes.open(driver)
    found = {
        "name": driver.device_name(),
        "uuid": driver.device_uuid(),
        "memory": driver.memory_bytes(),
        "driver": driver.versions().driver,
        "reason": lanes.capability.reason,
        "shape": [
            lanes.capability.num_groups,
            lanes.capability.group_sms,
            lanes.capability.remainder_sms,
        ],
        "split_calls": stub.stub_split_calls(),
        "splits": [
            [len(sms_of(lanes.stream(lane, s))) for lane in ("prefill", "decode")] for s in lanes.splits
        ],
        "disjoint": all(
            not sms_of(lanes.stream("prefill", s)) & sms_of(lanes.stream("decode", s)) for s in lanes.splits
        ),
        "priorities": [
            stub.stub_priority(ctypes.c_void_p(lanes.stream(lane, lanes.splits[0])))
            for lane in ("prefill", "decode")
        ],
        "events": events(driver, lanes),
        "errors": errors(driver),
        "thread": in_a_thread(driver),
    }
    lanes.close()
    driver.close()
    return found | {"alive": stub.stub_alive()}


def events(driver: CudaDriver, lanes: Lanes) -> dict[str, Any]:
    streams = [lanes.move("decode", split) for split in lanes.splits]
    start, end = driver.create_event(timing=True), driver.create_event(timing=True)
    driver.record_event(start, streams[-1])
    driver.record_event(end, streams[-1])
    asked = [driver.event_done(end), driver.event_done(end)]
    driver.synchronize_event(end)
    elapsed_ms = driver.elapsed_ms(start, end)
    driver.record_event(start, lanes.stream("prefill", lanes.solo_prefill))
    driver.wait_event(streams[-1], start)
    driver.destroy_event(start)
    driver.destroy_event(end)
    return {"asked": asked, "elapsed_ms": elapsed_ms, "moves": lanes.switches["decode"].count}


def errors(driver: CudaDriver) -> list[str]:
    """A call that the driver refuses, and one that this driver has not."""
    said = []
    whole = driver.sm_resource()
    once, again = (driver.split_sms(whole, 2, 8).groups[0] for _ in range(2))
    try:
        driver.create_green_context([once, again])
    except CudaError as error:
        said.append(f"{error.call} {error.status} {error.name} [{error.code}]")
    try:
        driver._call("cuGreenCtxGetId", 1)
    except SemipdError as error:
        said.append(f"[{error.code}] {error.message}")
    return said


def in_a_thread(driver: CudaDriver) -> list[str]:
    """Without and with `bind_thread`."""
    said: list[str] = []

    def work() -> None:
        try:
            driver.create_event()
        except CudaError as error:
            said.append(error.name)
        driver.bind_thread()
        driver.destroy_event(driver.create_event())
        said.append("bound")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return said


if __name__ == "__main__":
    print(json.dumps(main()))
