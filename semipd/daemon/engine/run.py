"""One engine process, from its start to its end: handshake, messages, questions, death."""

import asyncio
import logging
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from semipd.core.errors import ProtocolError, SemipdError
from semipd.core.messages import EngineQuestion, GetStatus, Inbound, Outbound, Status, StepTokens
from semipd.core.settings import EngineSettings
from semipd.core.state.engine import EngineStatus
from semipd.daemon.engine.link import Link
from semipd.daemon.engine.ready import EngineReady, PhaseTime, refusal
from semipd.engine.launcher import EngineChild
from semipd.system.children import kill_group
from semipd.system.patience import StartPatience
from semipd.system.process_usage import NOTHING, ProcessUsage, tree_usage
from semipd.wire.engine_link import inbound_to_wire, outbound_from_wire

log = logging.getLogger(__name__)

PROCESS_START_LIMIT_S = 60.0
"""Until the first phase is announced: Python and torch are imported then."""

POLL_S = 0.005
TERMINATE_LIMIT_S = 10.0
KILL_LIMIT_S = 30.0
EXIT_LIMIT_S = 5.0
"""From the end of the link to the end of the process, and the other way round."""


A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Phase:
    """What a start waits for, since `began_s` (time.monotonic). It may stand still for `limit_s`."""

    name: str
    limit_s: float
    began_s: float


class EngineRun:
    """`on_message` gets every message but Status, in order, on the event loop. Create from the main thread:
    the child's death signal follows it."""

    def __init__(
        self,
        settings: EngineSettings,
        on_message: Callable[[Outbound], None],
        spawn: Callable[[], EngineChild],
    ) -> None:
        self.timeline: list[PhaseTime] = []
        limit_s = PROCESS_START_LIMIT_S * settings.start_patience
        self.phase = Phase("starting the engine process", limit_s, time.monotonic())
        self._patience = StartPatience(limit_s, NOTHING)
        self.has_emitted = False
        """A token of any request."""
        self.last_answer_s: float | None = None
        self.last_status: EngineStatus | None = None
        """The engine's last answer to `status`."""
        self._settings = settings
        self._on_message = on_message
        self._child = spawn()
        self._link = Link(self._child.link)
        self._reading: asyncio.Task[str] | None = None
        self._accused: str | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last_nonce = 0

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def usage(self) -> ProcessUsage:
        """Of the engine and its workers, so far."""
        return tree_usage(self.pid)

    @property
    def phase_limit_s(self) -> float:
        """The phase's limit, and beyond it when the phase would end if it stood still from now on, in seconds
        since it began."""
        limit_s, seconds = self.phase.limit_s, time.monotonic() - self.phase.began_s
        return limit_s if seconds <= limit_s else seconds + limit_s - self._patience.standing_s

    @property
    def unsent_bytes(self) -> int:
        return self._link.unsent_bytes

    async def start(self) -> EngineReady:
        """Wait until it is ready, as long as no phase stands still for longer than its limit.

        Raises the engine's own SemipdError, `engine_start_timeout` or `engine_start_failed`; nothing is left
        running then.
        """
        try:
            self._link.send({"op": "start", "settings": self._settings.to_wire()})
            ready = await self._handshake()
        except BaseException:
            self.kill()
            await self.stop()
            raise
        self._reading = asyncio.create_task(self._read(), name="engine-reader")
        return ready

    def send(self, message: Inbound) -> None:
        self._link.send(inbound_to_wire(message))

    async def ask(self, question: Callable[[int], EngineQuestion[A]]) -> A:
        """Send what `question` makes of a nonce and wait for the answer, without a limit: the asker has one.
        Raises the engine's refusal."""
        self._last_nonce = nonce = self._last_nonce + 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[nonce] = answer
        try:
            self.send(cast(Inbound, question(nonce)))
            return cast(A, await answer)
        finally:
            del self._answers[nonce]

    async def status(self) -> EngineStatus:
        """A round trip through the coordinator's loop, without a limit."""
        status = await self.ask(GetStatus)
        self.last_status = status
        return status

    async def ended(self) -> str:
        """Wait until a ready engine has ended and its last message is taken; says how, in a sentence."""
        assert self._reading is not None, "the engine is not ready"
        return await asyncio.shield(self._reading)

    def kill(self, why: str | None = None) -> None:
        """SIGKILL the engine and every process of its group, now. `why` it had to be, for `ended`."""
        if self._child.process.poll() is None:
            self._accused = self._accused or why
            kill_group(self._child.process)

    def reopen_log(self) -> None:
        """It takes over our standard error stream as it is now."""
        self._child.process.send_signal(signal.SIGUSR1)

    async def stop(self) -> None:
        """SIGTERM, a bounded wait, SIGKILL. Idempotent; also after a failed start."""
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
        self._link.close()

    async def _handshake(self) -> EngineReady:
        while True:
            phase, message = self.phase, await self._next_word()
            seconds = time.monotonic() - phase.began_s
            self.timeline.append(PhaseTime(phase.name, seconds))
            log.info("%s: %.2f s", phase.name, seconds)
            match message.get("op"):
                case "phase":
                    self.phase = Phase(message["name"], float(message["limit_s"]), time.monotonic())
                    self._patience = StartPatience(self.phase.limit_s, self.usage())
                case "ready":
                    return EngineReady(
                        message["info"], message["scheduler"], tuple(message["notes"]), message["version"]
                    )
                case "failed":
                    raise SemipdError(message["code"], message["message"], message.get("hint", ""))
                case op:
                    raise ProtocolError("unknown_operation", f"The engine said {op!r} while starting.")

    async def _next_word(self) -> dict[str, Any]:
        receiving = asyncio.create_task(self._link.receive(), name="engine-word")
        try:
            await self._while_patient(receiving)
            return receiving.result()
        except EOFError as error:
            how = await self._how_it_ended()
            raise SemipdError(
                "engine_start_failed",
                f"The engine process ended {how} in the phase: {self.phase.name}.",
                "Its last words are on the standard error stream above.",
            ) from error
        finally:
            receiving.cancel()
            await asyncio.wait([receiving])

    async def _while_patient(self, receiving: "asyncio.Task[dict[str, Any]]") -> None:
        """Return when it is done. Raises `engine_start_timeout` when the phase stands still."""
        patience, looked_s = self._patience, time.monotonic()
        while not (await asyncio.wait([receiving], timeout=patience.look_every_s))[0]:
            elapsed_s, looked_s = time.monotonic() - looked_s, time.monotonic()
            if why := patience.looked(elapsed_s, self.usage()):
                raise SemipdError(
                    "engine_start_timeout",
                    f"The engine did not finish {why}: {self.phase.name} ({patience.account()}).",
                    "Look for a hung disk, device or process; on a very slow machine raise "
                    f"supervision.start_patience (it is {self._settings.start_patience:g}).",
                )

    async def _read(self) -> str:
        """Until the link ends; returns why, in a sentence."""
        last_word = ""
        try:
            while True:
                message = await self._link.receive()
                if message.get("op") == "failed":
                    last_word = f"because of {message['code']}: {message['message']} {message['hint']}"
                else:
                    self._handle(outbound_from_wire(message))
        except EOFError:
            how = await self._how_it_ended()
        except Exception as error:
            log.exception("the engine sent something that cannot be handled")
            self.kill(f"it sent a message that cannot be handled ({error})")
            how = await self._how_it_ended()
        if self._accused is not None:
            return f"The engine was killed: {self._accused}."
        return f"The engine ended {last_word.rstrip(' .') or how}."

    def _handle(self, message: Outbound) -> None:
        if isinstance(message, Status):
            self._answer(message)
            return
        self.has_emitted = self.has_emitted or isinstance(message, StepTokens)
        self._on_message(message)

    def _answer(self, status: Status) -> None:
        self.last_answer_s = time.monotonic()
        waiting = self._answers.get(status.nonce)
        if waiting is None or waiting.done():
            return
        if status.refused is None:
            waiting.set_result(status.data)
        else:
            waiting.set_exception(refusal(status.refused))

    async def _how_it_ended(self) -> str:
        process = self._child.process
        if not await _exits_within(process, EXIT_LIMIT_S):
            self.kill(f"it had closed its link and was still there {EXIT_LIMIT_S:g} s later")
            await _exits_within(process, KILL_LIMIT_S)
        return describe_exit(process.returncode)


async def _exits_within(process: "subprocess.Popen[bytes]", limit_s: float) -> bool:
    """Without a thread: the system may have none left when an engine has died."""
    deadline_s = time.monotonic() + limit_s
    while (code := process.poll()) is None and time.monotonic() < deadline_s:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    return code is not None


def describe_exit(returncode: int | None) -> str:
    """`with exit code 3`, `on signal SIGKILL (...)`; None: it still runs, whatever was tried."""
    if returncode is None:
        return "its link but cannot be killed"
    if returncode >= 0:
        return f"with exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = str(-returncode)
    hint = "; the kernel's log says whether memory ran out" if name == "SIGKILL" else ""
    return f"on signal {name}{hint}"
