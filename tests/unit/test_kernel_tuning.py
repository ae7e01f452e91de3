"""The table of tuned configurations, and how tuning fills it, without a GPU."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tune_kernels
from kernellib import tuning
from semipd_kernels import tuned
from semipd_kernels.tuned import Key, Table, parse, render

from semipd.core.errors import SemipdError

ROOT = Path(__file__).parents[2]
KEY = Key("decode_attention", 90, 128)
TABLE = Table(
    {KEY: {64: {"tile": 64}, 40: {"tile": 32}}, Key("decode_attention", 80, 128): {8: {"tile": 16}}}
)


@pytest.mark.parametrize(
    ("num_sms", "config"),
    [(39, None), (40, {"tile": 32}), (63, {"tile": 32}), (64, {"tile": 64}), (132, {"tile": 64})],
)
def test_lookup_takes_the_largest_sm_count_not_above(num_sms: int, config: dict[str, int] | None) -> None:
    assert TABLE.lookup(KEY, num_sms) == config


def test_lookup_never_crosses_operation_architecture_or_head_dim() -> None:
    for key in (KEY._replace(op="prefill_attention"), KEY._replace(arch=100), KEY._replace(head_dim=64)):
        assert TABLE.lookup(key, 132) is None


def test_what_is_written_can_be_read() -> None:
    assert parse(render(TABLE)).entries() == TABLE.entries()
    assert parse(render(Table({}))).entries() == []
    assert sum('"op"' in line for line in render(TABLE).splitlines()) == 3


def test_configurations_cannot_be_changed_by_who_looks_them_up() -> None:
    config: Any = TABLE.lookup(KEY, 64)
    with pytest.raises(TypeError):
        config["tile"] = 1


ENTRY = {"op": "a", "arch": 90, "head_dim": 128, "num_sms": 64, "config": {"tile": 64}}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "exactly `version` and `entries`"),
        ({"version": 2, "entries": []}, "has version 2"),
        ({"version": 1, "entries": {}}, "`entries` must be a list"),
        ([{**ENTRY, "extra": 1}], "entry 0 must hold exactly op, arch"),
        ([{**ENTRY, "arch": "90"}], "`arch` must be of type int, not '90'"),
        ([{**ENTRY, "num_sms": True}], "`num_sms` must be of type int, not True"),
        ([{**ENTRY, "num_sms": 0}], "out of range: op a, arch 90, head_dim 128, num_sms 0"),
        ([{**ENTRY, "config": {"tile": 1.5}}], "`config.tile` must be an integer, not 1.5"),
        ([ENTRY, ENTRY], "entry 1 repeats op a, arch 90"),
    ],
)
def test_damaged_tables_are_refused(document: Any, says: str) -> None:
    if isinstance(document, list):
        document = {"version": 1, "entries": document}
    with pytest.raises(SemipdError) as refused:
        parse(document if isinstance(document, str) else json.dumps(document), "tuned.json")
    assert refused.value.code == "tuned_table_invalid"
    assert says in refused.value.message
    assert "tune_kernels" in refused.value.hint


def test_every_shipped_entry_is_a_candidate_of_its_operation() -> None:
    for key, _, config in tuned.parse(tune_kernels.TABLE.read_text()).entries():
        configs = import_module(f"semipd_kernels.{key.op}.configs")
        known = [dict(fields(config)) for config in configs.candidates(arch=key.arch, head_dim=key.head_dim)]
        assert dict(config) in known


def fields(config: Any) -> list[tuple[str, int]]:
    return [(name, getattr(config, name)) for name in config.__slots__]


@pytest.mark.parametrize("op", tuning.TUNED_OPS)
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("head_dim", tune_kernels.HEAD_DIMS)
def test_operations_offer_candidates(op: str, arch: int, head_dim: int) -> None:
    configs = import_module(f"semipd_kernels.{op}.configs")
    offered = list(configs.candidates(arch=arch, head_dim=head_dim))
    assert len(offered) > 1
    assert len(set(offered)) == len(offered)
    for num_sms in (16, 64, 132):
        chosen = configs.choose(arch=arch, head_dim=head_dim, num_sms=num_sms)
        assert type(chosen) is type(offered[0])
        assert all(type(value) is int for _, value in fields(chosen))
    assert all(shape.shape["head_dim"] == head_dim for shape in tuning.shapes(op, head_dim))


def result(num_sms: int, tile: int, us: list[float], current: bool = False) -> dict[str, Any]:
    return {"kind": "result", "op": KEY.op, "arch": 90, "head_dim": 128, "num_sms": num_sms, "key": str(tile),
            "config": {"tile": tile}, "current": current, "us": us}  # fmt: skip


def test_score_weighs_relative_gains_equally() -> None:
    assert tuning.score([1.0, 100.0]) == pytest.approx(10.0)
    assert tuning.score([2.0, 50.0]) == pytest.approx(10.0)


def test_the_fastest_wins_and_the_one_in_use_where_it_is_as_fast() -> None:
    records = [
        result(64, 1, [100.0], current=True),
        result(64, 2, [99.0]),
        result(40, 1, [100.0], current=True),
        result(40, 2, [90.0]),
        result(40, 3, [95.0]),
        {"kind": "error", "key": "4", "error": "wrong"},
        result(24, 2, [50.0]),
    ]
    won = tuning.winners(records)
    assert [(winner.num_sms, winner.config["tile"]) for winner in won] == [(24, 2), (40, 2), (64, 1)]
    assert [winner.num_tried for winner in won] == [1, 3, 2]
    table = tuning.updated(TABLE, won)
    assert [(key, sms, config["tile"]) for key, sms, config in table.entries()] == [
        (Key("decode_attention", 80, 128), 8, 16),
        (KEY, 24, 2),
        (KEY, 40, 2),
        (KEY, 64, 1),
    ]
    assert "| decode_attention | 90 | 128 | 40 | 100.0 | 90.0 | 10% | 3 | tile 2 |" in tuning.render(won)
    assert "| decode_attention | 90 | 128 | 24 |  | 50.0 |  | 1 | tile 2 |" in tuning.render(won)


def test_tuning_writes_after_each_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(render(TABLE))
    seen = []

    def supervise(command: Any, job: Any, budget: Any, limit: Any, keep: Any) -> None:
        assert job == {"sms": [0, 40], "ops": ["decode_attention"], "head_dims": tune_kernels.HEAD_DIMS}
        for record in (
            result(40, 1, [9.0]),
            {"kind": "skipped", "key": "x", "error": "time"},
            result(40, 2, [8.0]),
        ):
            keep(record)
            seen.append(parse(path.read_text()).lookup(KEY, 40))

    monkeypatch.setattr(tune_kernels, "supervise", supervise)
    arguments = ["--op", "decode_attention", "--sms", "0,40", "--table", str(path)]
    assert tune_kernels.main(arguments) == 0
    assert seen == [{"tile": 1}, {"tile": 1}, {"tile": 2}]
    assert "1 entries written; 1 candidates left for lack of time" in capsys.readouterr().out


def test_nothing_measured_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(render(TABLE))
    monkeypatch.setattr(tune_kernels, "supervise", lambda *args: None)
    assert tune_kernels.main(["--table", str(path)]) == 1
    assert path.read_text() == render(TABLE)


@pytest.mark.soak
def test_without_cuda_it_refuses(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(render(TABLE))
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "tune_kernels.py", "--table", path],
        capture_output=True,
        text=True,
        timeout=110,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 1
    assert "This needs an NVIDIA GPU and a CUDA build of torch" in done.stderr
    assert path.read_text() == render(TABLE)
