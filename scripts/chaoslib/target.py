"""The daemon under test: its process, its children by /proc, its log, and what it says of itself."""

import asyncio
import os
import re
import resource
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchlib.procfs import process_tree

from chaoslib.clock import MachineClock, usage_with_ours
from chaoslib.http import HttpExchange, ask
from semipd.core.errors import SemipdError
from semipd.system.children import module_command

START_LIMIT_S = 300.0
STOP_LIMIT_S = 90.0
SETTLE_LIMIT_S = 120.0
LEFT_LIMIT_S = 5.0
_MARK = "SEMIPD_CHAOS_RUN"


class Target:
    """Start it, torment it, stop it. Every process of this run carries a mark in its environment, so that
    none can be overlooked afterwards."""

    def __init__(
        self,
        folder: Path,
        model: Path | str,
        device: str,
        options: Mapping[str, object],
        checkout: Path | None = None,
    ) -> None:
        """`checkout`: the daemon is that of another working tree, with our interpreter and packages."""
        self.socket_path = folder / "daemon.sock"
        self.log_path = folder / "daemon.log"
        self.url = ""
        self._mark = uuid.uuid4().hex
        command = [
            *module_command("semipd.commands.daemon"),
            "start",
            "--device",
            device,
            "--model",
            str(model),
        ]
        command += ["--port", "0", "--socket", str(self.socket_path)]
        for key, value in options.items():
            command += ["--set", f"{key}={value}"]
        with self.log_path.open("w") as log:
            env = os.environ | {_MARK: self._mark}
            if checkout is not None:
                env["PYTHONPATH"] = str(checkout.resolve())
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=env, text=True, cwd=checkout
            )
        self.clock = MachineClock(lambda: usage_with_ours(self.pid))

    async def started(self) -> None:
        """Wait until it serves. Raises SemipdError: `daemon_start_failed`."""
        try:
            said = await self.clock.within(START_LIMIT_S, asyncio.to_thread(self._announcement))
        except TimeoutError:
            self.kill()
            said = ""
        found = re.search(r"http://\S+", said)
        if found is None:
            raise SemipdError("daemon_start_failed", f"The daemon did not start: {self.log_tail()}")
        self.url = found[0]

    def _announcement(self) -> str:
        assert self._process.stdout is not None
        said = ""
        while "try:" not in said and (line := self._process.stdout.readline()):
            said += line
        return said

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    async def status(self) -> dict[str, Any] | None:
        """None while it has nothing to say, for instance because its engine is being replaced."""
        try:
            status, document = await self.clock.within(10, ask(self.url, "GET", "/v1/status"))
        except (OSError, ValueError, SemipdError, TimeoutError):
            return None
        return document if status == 200 else None

    async def metric(self, name: str) -> float:
        """Sum over the labels of a counter; 0 when it has none."""
        exchange = await HttpExchange.open(self.url, "GET", "/metrics")
        try:
            text = b"".join([piece async for piece in exchange.body()]).decode()
        finally:
            exchange.hang_up()
        lines = [line for line in text.splitlines() if re.match(rf"{re.escape(name)}[ {{]", line)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def settled(self) -> int:
        """Wait until nothing lives in it; the KV blocks that are still in use then, all that are if it does
        not come to rest, -1 if nobody can tell."""
        deadline_s = self.clock.now_s + SETTLE_LIMIT_S
        used = -1
        while self.clock.now_s < deadline_s and not self.has_ended:
            status = await self.status()
            if status is not None and "kv" in status:
                used = int(status["kv"]["used_blocks"])
                if used == 0 and status["live_requests"] == 0:
                    break
            await asyncio.sleep(0.2)
        return used

    def log_count(self, text: str) -> int:
        """Lines of the log that hold it."""
        with self.log_path.open(errors="replace") as log:
            return sum(text in line for line in log)

    def log_tail(self, num_lines: int = 15) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-num_lines:])

    @property
    def pid(self) -> int:
        return self._process.pid

    def engine_pid(self) -> int | None:
        return next(iter(self._children(self.pid, "semipd.engine")), None)

    def worker_pids(self) -> list[int]:
        engine = self.engine_pid()
        return [] if engine is None else self._children(engine, "semipd.devices.cpu.worker")

    @staticmethod
    def _children(parent: int, label: str) -> list[int]:
        tree = process_tree(parent)
        return [pid for pid, entry in tree.items() if entry.parent == parent and entry.label == label]

    def send_signal(self, pid: int, number: signal.Signals) -> bool:
        """False: it has gone already."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def marked(self) -> list[int]:
        """Processes of this run that live, whoever their parent is now."""
        return processes_with(_MARK, self._mark)

    def fill_log(self) -> None:
        """From now on every write of the daemon to its log fails, as on a full disk (EFBIG)."""
        self._limit_files(self.log_path.stat().st_size)

    def empty_log(self) -> None:
        self._limit_files(resource.RLIM_INFINITY)

    def _limit_files(self, num_bytes: int) -> None:
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))

    async def stopped(self) -> int | None:
        """SIGTERM. The exit code; None when it had to be killed."""
        self._process.terminate()
        try:
            code = await self.clock.within(STOP_LIMIT_S, self._ended())
        except TimeoutError:
            self.kill()
            return None
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()
        return code

    async def _ended(self) -> int:
        while (code := self._process.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(STOP_LIMIT_S)

    async def left(self) -> list[int]:
        """Processes that remain some seconds after the end. They are killed."""
        deadline_s = self.clock.now_s + LEFT_LIMIT_S
        while (pids := self.marked()) and self.clock.now_s < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        for pid in pids:
            self.send_signal(pid, signal.SIGKILL)
        return pids


def processes_with(variable: str, value: str) -> list[int]:
    """Living processes that were started with this in their environment."""
    mark, found = f"{variable}={value}".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and _is_alive(folder) and mark in _read(folder / "environ").split(b"\0"):
            found.append(int(folder.name))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _is_alive(folder: Path) -> bool:
    fields: Sequence[bytes] = _read(folder / "stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] not in (b"Z", b"X")
