"""A checkpoint without its weights is refused before an engine starts, with the names of the files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.daemon_process import model_folder

from semipd.checkpoints.shards import INDEX, SINGLE, check_weight_files
from semipd.command_line import exit_codes
from semipd.commands import daemon as cli
from semipd.core.errors import SemipdError
from semipd.daemon.model.files import DEMO_FOLDER

HEAD = json.dumps({"__metadata__": {"a": "b"}, "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
WHOLE = len(HEAD).to_bytes(8, "little") + HEAD.encode() + bytes(8)
LLAMA = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def sharded(folder: Path, *files: str) -> None:
    weight_map = {f"t{idx}": file for idx, file in enumerate(files)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def with_single(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / SINGLE).write_bytes(content)


def one_of_two(folder: Path) -> None:
    sharded(folder, "a.safetensors", "b.safetensors")
    (folder / "a.safetensors").write_bytes(WHOLE)


def both_cut(folder: Path) -> None:
    sharded(folder, "a.safetensors", "b.safetensors")
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_bytes(WHOLE[:-3])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda _: None, SINGLE),
        (with_single(b""), "model.safetensors is empty"),
        (with_single(POINTER), "model.safetensors is a pointer of git-lfs"),
        (with_single(WHOLE[:5]), "no whole head"),
        (with_single(WHOLE[:40]), "no whole head"),
        (with_single(WHOLE[:-3]), f"has {len(WHOLE) - 3} bytes instead of {len(WHOLE)}"),
        (with_single(WHOLE + b"x"), f"has {len(WHOLE) + 1} bytes instead of {len(WHOLE)}"),
        (with_single(b"<!DOCTYPE html><html>not found</html>"), "no whole head"),
        (with_single(b"\x05" + bytes(7) + b"[1,2]"), "no head of safetensors"),
        (with_single(bytes(100)), "no head of safetensors"),
        (one_of_two, "b.safetensors"),
        (both_cut, "b.safetensors has"),
        (lambda folder: (folder / INDEX).write_text("{}"), INDEX),
        (lambda folder: (folder / INDEX).write_bytes(b""), INDEX),
        (lambda folder: (folder / SINGLE).mkdir(), SINGLE),
    ],
)
def test_refused_before_the_engine_starts(
    spoil: Callable[[Path], object],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    spoil(folder)
    monkeypatch.setattr("semipd.daemon.app.Daemon", lambda *_: pytest.fail("the daemon goes on"))
    where = ["--socket", str(tmp_path / "s.sock"), "--port", "0"]
    assert cli.main(["start", "--device", "cpu", "--model", str(folder), *where]) == exit_codes.FAILED
    assert said in capsys.readouterr().err


def test_whole_ones_pass(tmp_path: Path) -> None:
    check_weight_files(DEMO_FOLDER)
    sharded(tmp_path, "a.safetensors", "b.safetensors")
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(WHOLE)
    check_weight_files(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(SemipdError):
        check_weight_files(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "\udcff.safetensors", "a\x00b", "x\n" * 300])
def test_an_index_of_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    sharded(tmp_path, name)
    with pytest.raises(SemipdError) as refused:
        check_weight_files(tmp_path)
    assert refused.value.code == "checkpoint_corrupt"
    assert refused.value.hint
    assert len(refused.value.message) < 400
    assert refused.value.message.encode()
