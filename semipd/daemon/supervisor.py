"""The engine process as the daemon sees it: start, talk, notice its death, stop."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from semipd.core.errors import ProtocolError, SemipdError
from semipd.core.messages import Cancel, GetStatus, Inbound, Outbound, Status, Submit
from semipd.core.request import Request, SeqId
from semipd.core.settings import EngineSettings
from semipd.engine.launcher import EngineChild, spawn_engine
from semipd.wire.engine_link import LINK_FRAME_BYTES, inbound_to_wire, outbound_from_wire
from semipd.wire.frames import FrameReader, encode_frame

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "dead", "stopping"]

PROCESS_START_LIMIT_S = 60.0
"""Until the first phase is announced: Python and torch are imported then."""

STATUS_LIMIT_S = 2.0
TERMINATE_LIMIT_S = 10.0
KILL_LIMIT_S = 5.0
EXIT_LIMIT_S = 5.0
"""From the end of the link to the end of the process."""

READ_BYTES = 2**18
MAX_UNSENT_BYTES = LINK_FRAME_BYTES
"""Submissions the engine has not read yet; beyond, new ones are refused."""


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """One line of the start-up timeline."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine's `ready` frame. `info` is devices.contract.DeviceInfo as a map."""

    info: dict[str, Any]
    scheduler: str
    notes: tuple[str, ...]
    version: str

    @property
    def vocab_size(self) -> int:
        return int(self.info["vocab_size"])

    @property
    def max_model_len(self) -> int:
        return int(self.info["max_model_len"])


class Supervisor:
    """One engine process. `on_message` gets every message but Status, in order, on the event loop."""

    def __init__(
        self,
        settings: EngineSettings,
        on_message: Callable[[Outbound], None],
        spawn: Callable[[], EngineChild] = spawn_engine,
    ) -> None:
        self.state: State = "starting"
        self.timeline: list[PhaseTime] = []
        self.ready: EngineReady | None = None
        self.last_answer_s: float | None = None
        self._settings = settings
        self._on_message = on_message
        self._spawn = spawn
        self._phase = ("starting the engine process", PROCESS_START_LIMIT_S)
        self._child: EngineChild | None = None
        self._link: _Link | None = None
        self._reading: asyncio.Task[SemipdError] | None = None
        self._statuses: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_nonce = 0

    async def start(self) -> EngineReady:
        """Start the engine and wait until it is ready, each phase within its own limit.

        Call from the main thread. Raises the engine's own SemipdError, `engine_start_timeout` or
        `engine_start_failed`; nothing is left running then.
        """
        self._child = self._spawn()
        try:
            self._link = await _Link.over(self._child)
            self._link.write({"op": "start", "settings": self._settings.to_wire()})
            self.ready = await self._handshake(self._link)
        except BaseException:
            self.kill()
            await self.stop()
            raise
        self.state = "ready"
        self._reading = asyncio.create_task(self._read(self._link), name="engine-reader")
        return self.ready

    def submit(self, request: Request) -> None:
        """Raises SemipdError: `engine_not_ready`, `shutting_down` or `overloaded`."""
        link = self._require_ready()
        if link.unsent_bytes > MAX_UNSENT_BYTES:
            raise SemipdError(
                "overloaded",
                f"The engine has {link.unsent_bytes} bytes of requests to read; "
                f"the limit is {MAX_UNSENT_BYTES}.",
                "Send the request again later.",
            )
        link.send(Submit(request))

    def cancel(self, seq: SeqId) -> None:
        if self.state == "ready" and self._link is not None:
            self._link.send(Cancel(seq))

    async def status(self, limit_s: float = STATUS_LIMIT_S) -> dict[str, Any]:
        """A round trip through the coordinator's loop. Raises what `ask` does."""
        return await self.ask(GetStatus, limit_s)

    async def ask(
        self, question: Callable[[int], Inbound], limit_s: float = STATUS_LIMIT_S
    ) -> dict[str, Any]:
        """Send what `question` makes of a nonce, and wait for the answer.

        Raises SemipdError: the engine's refusal, `engine_silent` after `limit_s`, and what `submit` raises.
        """
        link = self._require_ready()
        self._last_nonce = nonce = self._last_nonce + 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._statuses[nonce] = answer
        try:
            link.send(question(nonce))
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError as error:
            raise SemipdError("engine_silent", f"The engine did not answer within {limit_s:g} s.") from error
        finally:
            del self._statuses[nonce]

    async def died(self) -> SemipdError:
        """Wait until a ready engine ends without being asked to; says how."""
        assert self._reading is not None, "the engine is not ready"
        return await asyncio.shield(self._reading)

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, SIGKILL. Idempotent; also after a failed start."""
        if self.state != "dead":
            self.state = "stopping"
        if self._child is None:
            return
        process = self._child.process
        if process.poll() is None:
            process.terminate()
            if not await _exits_within(process, TERMINATE_LIMIT_S):
                log.warning("the engine did not stop within %g s; killing it", TERMINATE_LIMIT_S)
                self.kill()
                await _exits_within(process, KILL_LIMIT_S)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._link is None:
            self._child.link.close()
        else:
            await self._link.close()

    def kill(self) -> None:
        """SIGKILL the engine and every process of its group, now."""
        if self._child is not None and self._child.process.poll() is None:
            os.killpg(self._child.process.pid, signal.SIGKILL)

    def _require_ready(self) -> "_Link":
        if self.state == "ready" and self._link is not None:
            return self._link
        if self.state == "stopping":
            raise SemipdError("shutting_down", "The daemon is shutting down.", "Send the request elsewhere.")
        doing = f"still busy with: {self._phase[0]}" if self.state == "starting" else "gone"
        raise SemipdError("engine_not_ready", f"The engine is {doing}.", "Send the request again later.")

    async def _handshake(self, link: "_Link") -> EngineReady:
        while True:
            began_s = time.monotonic()
            name, limit_s = self._phase
            message = await self._within(link, name, limit_s)
            seconds = time.monotonic() - began_s
            self.timeline.append(PhaseTime(name, seconds))
            log.info("%s: %.2f s", name, seconds)
            match message.get("op"):
                case "phase":
                    self._phase = (message["name"], float(message["limit_s"]))
                case "ready":
                    return EngineReady(
                        message["info"], message["scheduler"], tuple(message["notes"]), message["version"]
                    )
                case "failed":
                    raise SemipdError(message["code"], message["message"], message.get("hint", ""))
                case op:
                    raise ProtocolError("unknown_operation", f"The engine said {op!r} while starting.")

    async def _within(self, link: "_Link", name: str, limit_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(limit_s):
                return await link.receive()
        except TimeoutError as error:
            raise SemipdError(
                "engine_start_timeout",
                f"The engine did not finish within {limit_s:g} s: {name}.",
                "Look for a busy disk or CPU, then start again.",
            ) from error
        except EOFError as error:
            how = await self._how_it_ended()
            raise SemipdError(
                "engine_start_failed",
                f"The engine process ended {how} in the phase: {name}.",
                "Its last words are on the standard error stream above.",
            ) from error

    async def _read(self, link: "_Link") -> SemipdError:
        """Until the link ends; returns why."""
        how = ""
        try:
            while True:
                message = await link.receive()
                if message.get("op") == "failed":
                    how = f"because of {message['code']}: {message['message']} {message['hint']}".rstrip(" .")
                else:
                    self._handle(outbound_from_wire(message))
        except EOFError:
            how = how or await self._how_it_ended()
        except Exception as error:
            log.exception("the engine sent something that cannot be handled")
            self.kill()
            how = f"killed after a message that cannot be handled ({error})"
        if self.state == "ready":
            self.state = "dead"
        return SemipdError("engine_crashed", f"The engine ended {how}.", "Send the request again.")

    def _handle(self, message: Outbound) -> None:
        if isinstance(message, Status):
            self._answer(message)
        else:
            self._on_message(message)

    def _answer(self, status: Status) -> None:
        self.last_answer_s = time.monotonic()
        waiting = self._statuses.get(status.nonce)
        if waiting is None or waiting.done():
            return
        if status.refused is None:
            waiting.set_result(status.data)
        else:
            waiting.set_exception(_refusal(status.refused))

    async def _how_it_ended(self) -> str:
        assert self._child is not None
        process = self._child.process
        if not await _exits_within(process, EXIT_LIMIT_S):
            self.kill()
            await _exits_within(process, KILL_LIMIT_S)
            return f"its link and was killed {EXIT_LIMIT_S:g} s later"
        return describe_exit(process.returncode)


class _Link:
    """Frames over the engine's socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader(LINK_FRAME_BYTES)
        self._received: deque[dict[str, Any]] = deque()

    @classmethod
    async def over(cls, child: EngineChild) -> "_Link":
        return cls(*await asyncio.open_unix_connection(sock=child.link))

    @property
    def unsent_bytes(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    def write(self, message: dict[str, Any]) -> None:
        self._writer.write(encode_frame(message))

    def send(self, message: Inbound) -> None:
        self.write(inbound_to_wire(message))

    async def receive(self) -> dict[str, Any]:
        """The next frame. Raises EOFError when the engine has closed its end."""
        while not self._received:
            try:
                data = await self._reader.read(READ_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError
            self._received.extend(self._frames.feed(data))
        return self._received.popleft()

    async def close(self) -> None:
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _refusal(refused: dict[str, Any]) -> SemipdError:
    return SemipdError(refused["code"], refused["message"], refused["hint"], param=refused["param"])


async def _exits_within(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    try:
        await asyncio.to_thread(process.wait, limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def describe_exit(returncode: int) -> str:
    """`with exit code 3`, `on signal SIGKILL (...)`."""
    if returncode >= 0:
        return f"with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    hint = "; the kernel's log says whether memory ran out" if name == "SIGKILL" else ""
    return f"on signal {name}{hint}"
