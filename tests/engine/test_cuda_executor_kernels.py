"""The executor over the kernels' launchers: on CPU tensors their references compute."""

import random
from dataclasses import replace

import pytest

pytest.importorskip("semipd_kernels.sampling", reason="the kernels are not part of this tree")

from support import cuda_rig
from support.cuda_rig import DEFAULTS, Rig
from support.cuda_serving import check_outputs, random_requests, serve

from semipd.devices.cuda.kernel_ops import KernelOps
from semipd.devices.cuda.kernel_sampler import KernelSampler


@pytest.fixture
def wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels take heads of 64 and more."""
    for name, config in cuda_rig.FAMILIES.items():
        monkeypatch.setitem(cuda_rig.FAMILIES, name, replace(config, head_dim=64))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("wide_heads")
def test_requests_get_their_tokens_through_the_launchers(seed: int) -> None:
    family = list(cuda_rig.FAMILIES)[seed]
    rig = Rig(
        seed,
        family=family,
        settings=DEFAULTS,
        ops=KernelOps(cuda_rig.torch.float32, 90),
        sampler_of=lambda size: KernelSampler(size, cuda_rig.CPU),
    )
    requests = random_requests(random.Random(seed), 8, rig.config.vocab_size)
    serve(rig, requests, switches=True)
    check_outputs(rig, requests)
