"""The benchmark's launches compute on Triton what they compute in the references, and its checks can fail."""

from contextlib import suppress

import pytest
import torch
from kernellib.bench_ops import CHECK_LIMIT, Inputs, prepare, relative_error
from kernellib.workloads import WORKLOADS, Workload
from semipd_kernels import dispatch
from support.interpreter import multiply_bf16

FASTER = {
    "decode_attention": {"seqs": 3, "context": 90, "heads": 4, "kv_heads": 2},
    "prefill_attention": {"seqs": 2, "query_len": 11, "context": 37, "heads": 4, "kv_heads": 2},
    "sampling": {"rows": 3, "vocab_size": 1003},
}
ONE_OF_EACH = {workload.op: workload for workload in reversed(WORKLOADS) if workload.op != "matmul"}


@pytest.mark.parametrize("workload", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_triton_and_reference_agree(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_bf16(monkeypatch)
    shape = {**workload.checked_shape(), **FASTER.get(workload.op, {})}
    outputs = []
    for interpreted in (True, False):
        monkeypatch.setattr(dispatch, "INTERPRETED", interpreted)
        inputs = Inputs("cpu", "cpu", seed=1, num_sms=4, ragged=True)
        outputs.append(prepare(workload.op, shape, inputs).run())
    got, want = outputs
    assert len(got) == len(want)
    for ours, reference in zip(got, want, strict=True):
        assert relative_error(ours, reference) <= CHECK_LIMIT


COMPARED = [
    ("decode_attention", {"seqs": 3, "context": 90, "heads": 4, "kv_heads": 2, "head_dim": 64}),
    (
        "prefill_attention",
        {"seqs": 2, "query_len": 37, "context": 37, "heads": 4, "kv_heads": 2, "head_dim": 64},
    ),
    (
        "prefill_attention",
        {"seqs": 2, "query_len": 11, "context": 37, "heads": 4, "kv_heads": 4, "head_dim": 64},
    ),
    (
        "decode_attention",
        {"seqs": 2, "context": 90, "heads": 4, "kv_heads": 2, "head_dim": 64, "block_size": 64},
    ),
    ("gather_kv", {"context": 37, "kv_heads": 2, "head_dim": 64}),
]


@pytest.mark.parametrize(("op", "shape"), COMPARED)
def test_torch_computes_the_same_for_comparison(
    op: str, shape: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    prepared = prepare(op, shape, Inputs("cpu", "cpu", seed=1, num_sms=4))
    assert prepared.comparable
    (ours,) = prepared.run()
    errors = {}
    for name, baseline in prepared.baselines.items():
        with suppress(RuntimeError):  # not every backend exists on a CPU
            (torchs,) = baseline()
            errors[name] = relative_error(torchs, ours)
    assert errors
    assert max(errors.values()) <= CHECK_LIMIT, errors


def test_products_have_weights_as_the_engine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """[out, in], transposed: other kernels of cuBLAS than for [in, out]."""
    strides: list[tuple[int, ...]] = []
    real = torch.mm

    def mm(a: torch.Tensor, b: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        strides.append(b.stride())
        return real(a, b, **more)

    monkeypatch.setattr(torch, "mm", mm)
    (out,) = prepare("matmul", {"m": 3, "k": 8, "n": 5}, Inputs("cpu", "cpu", seed=1, num_sms=1)).run()
    assert out.shape == (3, 5)
    assert strides == [(1, 8)]


def test_inputs_repeat_by_seed() -> None:
    one, same, other = (Inputs("cpu", "cpu", seed, num_sms=1).paged(2, 40, 2, 64) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])
    assert one[1].dtype == torch.int32
    assert sorted(one[1].flatten().tolist()) == list(range(1, 7))


def test_relative_error() -> None:
    want = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), want) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, torch.nan]), want) == float("inf")
    assert relative_error(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4])) == pytest.approx(1 / 3)
