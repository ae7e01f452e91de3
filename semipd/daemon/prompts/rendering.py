"""Chat templates run in children of the daemon: one that loops or grows is ended, and nobody else waits.

A template comes with a checkpoint and is a program. A thread that runs one could not be stopped, and would
hold the GIL.
"""

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import Protocol

import msgpack

from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.core.state.daemon import RenderingState
from semipd.daemon.host.process_limits import exhausted
from semipd.daemon.model.chat_template import LIMIT_CODE, ChatTemplate
from semipd.daemon.prompts.conversation import Conversation, Template, written
from semipd.daemon.prompts.render_child import LENGTH
from semipd.system.children import module_command, module_environment
from semipd.system.process_usage import process_usage
from semipd.wire.own_time import OwnTime

log = logging.getLogger(__name__)

MAX_CHILDREN = 2
"""One conversation that takes long does not keep all others waiting."""

MAX_WAITING_RENDERS = 256
"""Conversations that wait for a child; a burst of ordinary ones takes about a millisecond each."""

WAIT_LIMIT_S = 30.0
"""For a child, of the daemon's own time: others may keep all of them busy."""

PATIENCE = 30
"""A child that gets no CPU has so many times its limit by the clock."""

START_CPU_MS = 1500
"""For a child to start, beside what compiling the template may take."""

SAFE_DEPTH = 200
"""Of values in a conversation: pickling takes two of Python's 1,000 calls for each level."""

END_LIMIT_S = 5.0
READ_BYTES = 2**20

_TRIAL = Conversation([{"role": "user", "content": "Hello"}])


class Renderer(Protocol):
    async def render(self, conversation: Conversation) -> str:
        """The prompt's text. Raises SemipdError: `invalid_messages`, `invalid_chat_template`,
        `chat_template_limit`, `renderer_failed`, `overloaded`, `shutting_down`."""

    def to_wire(self) -> RenderingState:
        """For the status document: conversations under way and waiting, and the bounds of both."""

    async def close(self) -> None:
        """Idempotent."""


class DirectRenderer:
    """For templates that are code of our own: renders where it is called."""

    def __init__(self, template: Template) -> None:
        self._template = template

    async def render(self, conversation: Conversation) -> str:
        return written(conversation, self._template)

    def to_wire(self) -> RenderingState:
        return rendering_to_wire()

    async def close(self) -> None:
        """Nothing is open."""


class _DiedError(Exception):
    """The child has gone without an answer."""


class RenderPool:
    """Children are started when they are needed, and stay. Use from the main thread: a child's death signal
    follows the thread."""

    def __init__(self, template: ChatTemplate, limits: LimitsConfig) -> None:
        self._template = template
        self._limits = limits
        self._idle: list[_Child] = []
        self._free = asyncio.Semaphore(MAX_CHILDREN)
        self._num_waiting = 0
        self._is_closed = False
        self._jobs: set[asyncio.Task[str]] = set()

    async def render(self, conversation: Conversation) -> str:
        """Whoever goes away while it waits leaves nothing to be done."""
        await self._turn()
        job = asyncio.create_task(self._render(conversation), name="render")
        self._jobs.add(job)
        job.add_done_callback(self._end)
        # who goes away does not end what has begun: a child would have to be started again
        return await asyncio.shield(job)

    def to_wire(self) -> RenderingState:
        return rendering_to_wire(len(self._jobs), self._num_waiting)

    async def _turn(self) -> None:
        """One of MAX_CHILDREN, until its job has ended. Raises SemipdError: `overloaded`, `shutting_down`."""
        if self._free.locked() and self._num_waiting >= MAX_WAITING_RENDERS:
            raise self._overloaded(f"{self._num_waiting} conversations wait")
        self._num_waiting += 1
        try:
            async with OwnTime(WAIT_LIMIT_S):
                await self._free.acquire()
        except TimeoutError as error:
            raise self._overloaded(f"This one has waited {WAIT_LIMIT_S:g} s") from error
        finally:
            self._num_waiting -= 1
        if self._is_closed:
            self._free.release()
            raise SemipdError("shutting_down", "The daemon is shutting down.")

    def _overloaded(self, what: str) -> SemipdError:
        return SemipdError(
            "overloaded",
            f"{what} for the chat template, which is at work on {len(self._jobs)} others; at most "
            f"{MAX_WAITING_RENDERS} may wait, {WAIT_LIMIT_S:g} s each.",
            "Send the request again later.",
            retry_after_s=max(self._limits.template_ms / 1e3, 1),
        )

    def _end(self, job: "asyncio.Task[str]") -> None:
        self._jobs.discard(job)
        self._free.release()
        if not job.cancelled():
            job.exception()  # nobody may be left to whom it matters

    async def trial(self) -> SemipdError | None:
        """Renders a short conversation and ends the child; what came of that. Raises SemipdError when the
        template does not compile."""
        try:
            self._idle.append(await _Child.started(self._template, self._limits))
        except _DiedError:
            return _failed()
        except SemipdError as error:
            if error.code not in (LIMIT_CODE, "overloaded"):
                raise
            return error
        try:
            await self.render(_TRIAL)
        except SemipdError as error:
            return error
        finally:
            await self._end_idle()
        return None

    async def close(self) -> None:
        self._is_closed = True
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._end_idle()

    async def _end_idle(self) -> None:
        children, self._idle = self._idle, []
        for child in children:
            await child.end()

    async def _render(self, conversation: Conversation) -> str:
        data = _pickled(conversation)
        try:
            return await self._attempt(data)
        except _DiedError:
            log.warning("the chat template's process ended without an answer; it gets another try")
        try:
            return await self._attempt(data)
        except _DiedError as error:
            raise _failed() from error

    async def _attempt(self, data: bytes) -> str:
        """A child is used again unless it died, was stopped, or reached a limit."""
        child = self._idle.pop() if self._idle else await _Child.started(self._template, self._limits)
        is_well = False
        try:
            code, *rest = await child.ask(data)
            is_well = code != LIMIT_CODE
        finally:
            if is_well:
                self._idle.append(child)
            else:
                await child.end()
        if code:
            raise _error(code, rest)
        return str(rest[0])


def rendering_to_wire(num_rendering: int = 0, num_waiting: int = 0) -> RenderingState:
    return {
        "rendering": num_rendering,
        "waiting": num_waiting,
        "max_rendering": MAX_CHILDREN,
        "max_waiting": MAX_WAITING_RENDERS,
    }


def _error(code: str, rest: list[str | None]) -> SemipdError:
    message, hint, param = rest
    return SemipdError(code, str(message), str(hint), param=param)


def _failed() -> SemipdError:
    message = "The process that runs the chat template ended twice without an answer."
    return SemipdError("renderer_failed", message, "The daemon's log may say more.")


def _pickled(value: object) -> bytes:
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except RecursionError as error:
        raise SemipdError(
            "invalid_messages",
            "The messages, or chat_template_kwargs, are nested too deeply to be handed to the chat template; "
            f"{SAFE_DEPTH} levels of arrays and objects always can be.",
            "Send what is nested more deeply as text.",
            param="messages",
        ) from error


@dataclass(slots=True, eq=False)
class _Child:
    """One process. `limit_ms`: CPU time per conversation; `cpu_s`: what it had used when it last answered."""

    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    limit_ms: int
    cpu_s: float = 0.0
    watch: asyncio.Task[None] | None = None

    @classmethod
    async def started(cls, template: ChatTemplate, limits: LimitsConfig) -> "_Child":
        try:
            process, ours = _spawned()
        except OSError as error:
            raise exhausted(error, "The chat template's process cannot be started") or error from error
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=READ_BYTES)
        child = cls(process, reader, writer, limits.template_ms)
        terms = (template.source, template.special_tokens, limits.template_chars)
        try:
            terms_and_memory = pickle.dumps((*terms, limits.template_memory_bytes))
            code, *rest = await child._answer(terms_and_memory, START_CPU_MS + limits.template_ms)
            if code:
                raise _error(code, rest)
        except BaseException:
            await child.end()
            raise
        return child

    async def ask(self, data: bytes) -> list[str | None]:
        """Raises _DiedError, SemipdError(`chat_template_limit`)."""
        return await self._answer(data, self.limit_ms)

    async def _answer(self, data: bytes, limit_ms: int) -> list[str | None]:
        loop = asyncio.get_running_loop()
        timer = loop.call_later(limit_ms / 1e3, self._begin_watch, limit_ms)
        try:
            self.writer.write(LENGTH.pack(len(data)))
            self.writer.write(data)
            await self.writer.drain()
            (length,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
            answer = await self.reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            if self.watch is not None and self.watch.done():
                raise self._too_slow() from error
            raise _DiedError from error
        finally:
            timer.cancel()
            if self.watch is not None:
                self.watch.cancel()
                self.watch = None
        shown: list[str | None]
        *shown, self.cpu_s = msgpack.unpackb(answer, unicode_errors="surrogatepass")
        return shown

    async def end(self) -> None:
        self.process.kill()
        self.writer.close()
        deadline_s = time.monotonic() + END_LIMIT_S
        while self.process.poll() is None and time.monotonic() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    def _begin_watch(self, limit_ms: int) -> None:
        self.watch = asyncio.create_task(self._stop_if_late(limit_ms / 1e3), name="render-limit")

    async def _stop_if_late(self, limit_s: float) -> None:
        """Ends, with the process, when the work has taken too long. So much time has passed by the clock."""
        deadline_s = time.monotonic() + limit_s * PATIENCE
        left_s = 0.01
        while left_s > 0 and time.monotonic() < deadline_s:
            await asyncio.sleep(max(left_s, 0.01))
            left_s = self.cpu_s + limit_s - process_usage(self.process.pid).cpu_s
        self.process.kill()

    def _too_slow(self) -> SemipdError:
        return SemipdError(
            LIMIT_CODE,
            f"The chat template did not write these messages within limits.template_ms={self.limit_ms}.",
            "Send a shorter conversation, or raise the limit; if it never ends, the template is at fault: "
            "/v1/completions works without it.",
            param="messages",
        )


def _spawned() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child, and our end of its link."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            return _spawn(theirs), ours
        except BaseException:
            ours.close()
            raise


def _spawn(link: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*module_command("semipd.daemon.prompts.render_child"), str(os.getpid()), str(link.fileno())],
        env=module_environment(),
        pass_fds=[link.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
