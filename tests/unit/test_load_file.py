"""The file of a recorded load: written in whole lines, read up to a cut, and what is no such file refused."""

import errno
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from benchlib.load import traces as bench_traces

from semipd.commands.load_writer import LoadWriter
from semipd.commands.record import Progress, size
from semipd.core.errors import SemipdError
from semipd.core.slo import Targets
from semipd.core.state.load import LoadFacts, RecordedRequest
from semipd.sim.workloads.traces import Row, form_of, read_trace
from semipd.wire.load_file import encode_line, read_load
from semipd.wire.load_frame import LoadFrame

FACTS: LoadFacts = {
    "model": "demo",
    "device": "fake",
    "block_tokens": 64,
    "classes": {"default": Targets(ttft_ms=500.0, itl_ms=80.0).to_wire(), "batch": Targets().to_wire()},
}


class Clock:
    def __init__(self) -> None:
        self.at_s = 1000.0

    def __call__(self) -> float:
        return self.at_s


def request(at_s: float, prompt: int, output: int, blocks: list[int], **more: Any) -> RecordedRequest:
    found: Any = {"at_s": at_s, "input_length": prompt, "output_length": output, "hash_ids": blocks}
    return cast(RecordedRequest, {"service_class": "default", "end": "stop"} | found | more)


def recorded(path: Path) -> Path:
    """A short call, a long one that ended later, a refusal, a break of 60 s, a call after it."""
    clock = Clock()
    with LoadWriter(path, 2**20, clock) as writer:
        writer.begin(FACTS)
        calls = [request(1002.0, 100, 5, [7, 8]), request(1001.0, 130, 50, [7, 8, 9], service_class="batch")]
        refusal: Any = {"at_s": 1003.0, "refused": "overloaded", "service_class": "batch"}
        writer.frame(LoadFrame(None, calls, [refusal], lost=2))
        clock.at_s = 1064.0
        writer.gap(1004.0, "connection_lost", FACTS)
        calls = [request(1065.0, 128, 1, [7, 8]), request(1066.0, 3, 0, [1], end="cancelled")]
        writer.frame(LoadFrame(None, calls))
        writer.close("ended")
    return path


def test_what_was_written_is_read_by_simulator_and_benchmark(tmp_path: Path) -> None:
    path = recorded(tmp_path / "load")
    assert form_of(path) == "recorded"
    trace = read_trace(path, "recorded")
    assert trace.rows == (
        Row(1.0, 130, 50, (0, 1, 2), "batch"),
        Row(2.0, 100, 5, (0, 1), "default"),
        Row(5.0, 128, 1, (3, 4), "default"),
    ), "in the order of time, without the time of the break, and nothing is shared across it"
    assert trace.block_tokens == 64
    assert trace.classes == {"default": Targets(ttft_ms=500.0, itl_ms=80.0), "batch": Targets()}
    assert trace.num_unserved == 4, "a refusal, two that were lost, one without output"
    assert trace.offered_rate == pytest.approx(2 / 4 * 7 / 3)
    planned = bench_traces.read_trace(path)
    assert planned.block_tokens == 64
    assert [(r.due_s, r.prompt_tokens, r.block_hashes) for r in planned.requests] == [
        (row.at_s, row.prompt_tokens, row.blocks) for row in trace.rows
    ]
    with pytest.raises(SemipdError, match="blocks of 64 tokens, not of 16"):
        bench_traces.read_trace(path, 16)


def test_a_cut_file_is_readable_up_to_the_cut(tmp_path: Path) -> None:
    whole = recorded(tmp_path / "whole").read_bytes()
    rows = read_load(tmp_path / "whole").rows
    header = whole.index(b"\n") + 1
    path = tmp_path / "cut"
    ends = {at + more for at, byte in enumerate(whole) if byte == ord("\n") for more in (0, 1, 2)}
    for length in sorted(ends | set(range(0, len(whole), 11))):
        if length > len(whole):
            continue
        path.write_bytes(whole[:length])
        if length < header - 1:
            with pytest.raises(SemipdError) as refused:
                read_load(path)
            assert refused.value.code == "not_a_recording"
            continue
        load = read_load(path)
        num_rows = whole[:length].count(b"hash_ids", 0, whole.rfind(b"\n", 0, length) + 1)
        assert load.rows == rows[:num_rows]
        assert bool(load.cut) == (length < len(whole))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[]", "not understood"),
        (b"{", "not understood"),
        (b'{"input_length": 64}', "hash_ids"),
        (b'{"timestamp": 0, "input_length": 64, "output_length": 1, "hash_ids": []}', "0 hash_ids for 1"),
        (b'{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}', "from 1 on"),
        (b'{"timestamp": 0, "input_length": 1e3, "output_length": 1, "hash_ids": [1]}', "no whole number"),
        (b'{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": ["a"]}', "no whole number"),
        (b'{"timestamp": -1, "input_length": 9, "output_length": 1, "hash_ids": [1]}', "from 0 on"),
        (b'{"timestamp": 1e999, "input_length": 9, "output_length": 1, "hash_ids": [1]}', "from 0 on"),
        (b'{"break_ms": null}', "from 0 on"),
        (b"[" * 10**5, "not understood"),
        (b"\xff\xfe", "not understood"),
    ],
    ids=range(12),
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: bytes, why: str) -> None:
    path = recorded(tmp_path / "load")
    first, second, *rest = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, second, line, *rest]) + b"\n")
    with pytest.raises(SemipdError, match=why) as refused:
        read_trace(path, "recorded")
    assert refused.value.code == "invalid_trace"
    assert refused.value.message.startswith(f"Line 3 of {path} ")


def test_lines_and_fields_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    path = recorded(tmp_path / "load")
    rows = read_load(path).rows
    first, *rest = path.read_bytes().splitlines(keepends=True)
    later = [line.replace(b'"timestamp"', b'"colour":"red","timestamp"') for line in rest]
    path.write_bytes(b"".join([first, b'{"weather":"fair"}\n', *later]))
    assert read_load(path).rows == rows


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_versions_are_refused(tmp_path: Path, version: Any) -> None:
    path = recorded(tmp_path / "load")
    first, *rest = path.read_bytes().splitlines(keepends=True)
    header = json.loads(first) | {"version": version, "semipd": "9.9"}
    path.write_bytes(encode_line(header) + b"".join(rest))
    for read in (lambda: read_trace(path, form_of(path)), lambda: bench_traces.read_trace(path)):
        with pytest.raises(SemipdError, match=r"written by semipd '9\.9'") as refused:
            read()
        assert refused.value.code == "recording_version"


def test_the_size_is_a_bound_and_the_file_ends_properly(tmp_path: Path) -> None:
    with LoadWriter(tmp_path / "load", 4000, Clock()) as writer:
        writer.begin(FACTS)
        while not writer.is_full:
            writer.frame(LoadFrame(None, [request(1001.0, 64, 1, [5])] * 3, lost=1))
        writer.close("full")
    load = read_load(tmp_path / "load")
    assert 3000 < (tmp_path / "load").stat().st_size <= 4000
    assert (len(load.rows), load.cut) == (writer.num_requests, "")


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [1000]

    def write(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[: left[0]])
        left[0] -= written
        return written

    real = os.write
    with LoadWriter(tmp_path / "load", 2**20, Clock()) as writer:
        monkeypatch.setattr(os, "write", write)
        writer.begin(FACTS)
        with pytest.raises(SemipdError, match="No space left") as stopped:
            writer.frame(LoadFrame(None, [request(1001.0, 64, 1, [5])] * 20))
    assert stopped.value.code == "recording_stopped"
    assert (tmp_path / "load").read_bytes().endswith(b"\n")
    load = read_load(tmp_path / "load")
    assert len(load.rows) == writer.num_requests > 3
    assert load.cut


def test_a_recording_is_never_overwritten_and_its_owners_alone(tmp_path: Path) -> None:
    path = recorded(tmp_path / "load")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SemipdError) as refused:
        recorded(path)
    assert refused.value.code == "file_exists"


def test_progress_is_for_terminals_and_ends_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        has_gone = False

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if self.has_gone:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    terminal, pipe = Terminal(), io.StringIO()
    with LoadWriter(tmp_path / "load", 2**20, time.time) as writer:
        writer.begin(FACTS)
        writer.frame(LoadFrame(None, [request(1001.0, 64, 1, [5])], lost=3))
        progress = Progress(writer)
        monkeypatch.setattr(sys, "stderr", pipe)
        progress.show("; waiting")
        progress.clear()
        assert pipe.getvalue() == ""
        monkeypatch.setattr(sys, "stderr", terminal)
        progress.show("")
        progress.show("")
        assert terminal.getvalue().startswith("\r\x1b[K1 requests, 3 lost in 0:0")
        assert terminal.getvalue().count("requests") == 1, "once a second"
        terminal.has_gone = True
        progress.show("; waiting")
        progress.clear()


def test_sizes() -> None:
    assert [size(text) for text in ("65536", "64K", "3M", "1G", "1T")] == [
        2**16,
        2**16,
        3 << 20,
        2**30,
        2**40,
    ]
    for text in ("1", "2T", "1.5G", "G", "-1M", "1G ", "9" * 16):
        with pytest.raises(Exception, match="no size"):
            size(text)
