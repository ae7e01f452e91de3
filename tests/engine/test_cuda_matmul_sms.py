"""Matrix products: cuBLAS hears of the lane whose products come next, and writes logits in float32."""

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.cuda_rig import Rig
from support.cuda_serving import check_outputs, random_requests, serve
from support.deferred_cuda import DeferredCuda
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.interface import Graph, Stream
from semipd.devices.cuda.driver.matmul_sms import sm_carveout
from semipd.network.ops_torch import linear


class FakeTorch:
    """Notes what it was told."""

    def __init__(self, *, has_carveout: bool = True, has_cublaslt: bool = True) -> None:
        self.__version__ = "2.0"
        self.told = list[int | None]()
        self.libraries = list[str]()
        self._has_cublaslt = has_cublaslt
        call = {"_set_sm_carveout_experimental": self.told.append} if has_carveout else {}
        self._C = SimpleNamespace(**call)
        self.backends = SimpleNamespace(cuda=SimpleNamespace(preferred_blas_library=self._prefer))

    def _prefer(self, name: str) -> None:
        if not self._has_cublaslt:
            raise RuntimeError("not compiled with cuBLASLt")
        self.libraries.append(name)


def test_only_changes_are_told_and_the_whole_device_is_no_carveout() -> None:
    fake = FakeTorch()
    aim = sm_carveout(fake, 132)
    for num_sms in (132, 64, 64, 68, 132, 132, 64):
        aim(num_sms)
    assert (fake.libraries, fake.told) == (["cublaslt"], [68, 64, None, 68])


@pytest.mark.parametrize("lacks", ["has_carveout", "has_cublaslt"])
def test_a_torch_without_it_is_named(lacks: str) -> None:
    with pytest.raises(SemipdError, match=r"torch 2\.0 cannot tell cuBLAS .* Set cuda\.sm_carveout to false"):
        sm_carveout(FakeTorch(**{lacks: False}), 132)


def test_the_torch_that_is_installed_has_it() -> None:
    assert callable(getattr(torch._C, "_set_sm_carveout_experimental", None))


class Calls(TorchDispatchMode):
    """The operations that were called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_a_gpu_are_never_rounded_to_two_bytes(dtype: torch.dtype) -> None:
    """On a GPU of no memory: what torch would call."""
    with FakeTensorMode():
        x, weight = (torch.empty(rows, 8, dtype=dtype, device="cuda:0") for rows in (4, 16))
        out = torch.empty(4, 16, device="cuda:0")
        with Calls() as calls:
            assert linear(x, weight, None, out) is out
    assert [name for name in calls.names if "mm" in name] == ["aten.mm.dtype_out"]


def test_where_torch_cannot_the_product_is_copied() -> None:
    x, weight, out = (
        torch.ones(2, 8, dtype=torch.bfloat16),
        torch.ones(3, 8, dtype=torch.bfloat16),
        torch.empty(2, 3),
    )
    assert linear(x, weight, None, out).eq(8.0).all()


def test_every_product_is_launched_with_its_lanes_sms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies run later here than they are launched; the launch is what cuBLAS looks at."""
    told, seen = [0], list[tuple[int, int]]()
    submit, capture = DeferredCuda.submit, DeferredCuda.capture
    rig = Rig(seed=5, aim_matmuls=lambda num_sms: told.__setitem__(0, num_sms))

    def see(stream: Stream) -> None:
        seen.append((told[0], len(rig.driver.stream_sms(stream))))

    def noting_submit(driver: DeferredCuda, stream: Stream, *args: Any) -> None:
        see(stream)
        submit(driver, stream, *args)

    def noting_capture(driver: DeferredCuda, stream: Stream, body: Callable[[], None]) -> Graph:
        see(stream)
        return capture(driver, stream, body)

    monkeypatch.setattr(DeferredCuda, "submit", noting_submit)
    monkeypatch.setattr(DeferredCuda, "capture", noting_capture)
    rig.capture_all()
    requests = random_requests(random.Random(5), 6, rig.config.vocab_size)
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)
    assert len({aimed for aimed, _ in seen}) > 2
    assert all(aimed == has for aimed, has in seen)
