"""Work on a GPU in a child process: a crash or a hang costs one piece of work, not the run.

The child reads one JSON line, the job, and answers with JSON lines: {"kind": "begin", "key": ...} before each
piece of work, then anything else with that key when it is done. The parent keeps all of it.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchlib.child import mortal

from kernellib.budget import Budget
from semipd.system.children import kill_group

EXIT_REFUSED = 2
EXIT_DEVICE_LOST = 3
MAX_RESTARTS = 5
EXIT_LIMIT_S = 60.0
GRACE_S = 20.0
"""How long after the time limit a piece that began before it may go on."""

Record = dict[str, Any]


class RefusedError(RuntimeError):
    """The child cannot work on this machine; the message says why."""


def supervise(
    command: Sequence[str],
    job: Mapping[str, Any],
    budget: Budget,
    piece_limit_s: float,
    keep: Callable[[Record], None],
) -> None:
    """Run the job to its end, in a new child after each crash. `keep` is called with every record.

    The child finds in the job, besides what it says, `skip` (keys that are done) and `left_s`.

    Raises:
        RefusedError: before any work, the child could not start it.
    """
    done: set[str] = set()
    for _ in range(MAX_RESTARTS + 1):
        if not budget.left_s:
            return
        full_job = {**job, "skip": sorted(done), "left_s": budget.left_s}
        child = _Child(command, full_job, lambda: min(piece_limit_s, budget.left_s + GRACE_S))
        for record in child.records():
            keep(record)
            done.update([record["key"]] if "key" in record else [])
        if child.refusal:
            raise RefusedError(child.refusal)
        if child.status == 0:
            return
        if child.current is not None:
            done.add(child.current)
            keep({"kind": "error", "key": child.current, "error": child.fate()})
        elif child.status != EXIT_DEVICE_LOST:
            keep({"kind": "error", "key": "start", "error": child.fate()})
            return
    keep({"kind": "error", "key": "restarts", "error": f"gave up after {MAX_RESTARTS} restarts"})


class _Child:
    """One child process from start to end.

    Attributes, once `records` is through:
        status: exit status; None when it hung and was killed.
        current: the piece it had begun and not finished.
        refusal: why it cannot work here.
    """

    def __init__(
        self, command: Sequence[str], job: Mapping[str, Any], patience_s: Callable[[], float]
    ) -> None:
        self.status: int | None = None
        self.current: str | None = None
        self.refusal = ""
        self._command, self._job, self._patience_s = command, job, patience_s
        self._waited_s = 0.0

    def records(self) -> Iterator[Record]:
        """Everything but `begin` and `refused`, as it comes."""
        pipe, command = subprocess.PIPE, mortal(self._command)
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0) as process:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # its status tells
                process.stdin.write(json.dumps(self._job) + "\n")
                process.stdin.close()
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            try:
                yield from self._understand(lines)
                self.status = process.wait(timeout=EXIT_LIMIT_S)
            except (queue.Empty, subprocess.TimeoutExpired):
                pass
            finally:
                kill_group(process)

    def fate(self) -> str:
        if self.status is None:
            return f"no answer within {self._waited_s:.0f} s; the process was killed"
        return f"the process ended with status {self.status}"

    def _understand(self, lines: "queue.Queue[str | None]") -> Iterator[Record]:
        while True:
            self._waited_s = self._patience_s()
            line = lines.get(timeout=self._waited_s)
            if line is None:
                return
            record = json.loads(line)
            if record["kind"] == "begin":
                self.current = record["key"]
            elif record["kind"] == "refused":
                self.refusal = record["error"]
            else:
                if record.get("key") == self.current:
                    self.current = None
                yield record


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


class Reporter:
    """The child's side. Takes stdout for itself: what libraries print there goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.job: dict[str, Any] = json.loads(sys.stdin.readline())

    def __call__(self, kind: str, **fields: Any) -> None:
        self._out.write(json.dumps({"kind": kind, **fields}) + "\n")
        self._out.flush()


def work_through(
    report: Reporter,
    pieces: Sequence[tuple[str, Callable[[], Mapping[str, Any]]]],
    budget: Budget,
    device_lost: Callable[[Exception], bool],
) -> None:
    """Report each piece's result, its error, or that time ran out; end the process if the device is lost."""
    for key, work in pieces:
        if key in report.job["skip"]:
            continue
        if not budget.allows():
            report("skipped", key=key, error=f"the time limit of {budget.limit_s:.0f} s came first")
            continue
        began = budget.used_s
        report("begin", key=key)
        try:
            report("result", **{"key": key, **work()})
        except Exception as error:  # one failing kernel must not hide the others
            report("error", key=key, error=_one_line(error))
            if device_lost(error):
                sys.exit(EXIT_DEVICE_LOST)
        budget.spent(budget.used_s - began)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
