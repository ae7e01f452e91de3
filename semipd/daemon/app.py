"""The daemon's life: open everything on one stack, serve until asked to stop, close in reverse."""

import asyncio
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.shards import check_weight_files
from semipd.command_line.streams import flush
from semipd.config.config import Config
from semipd.core.errors import SemipdError
from semipd.daemon.access.addresses import claim_http, claim_socket
from semipd.daemon.engine.ready import EngineReady
from semipd.daemon.engine.supervisor import Supervisor
from semipd.daemon.host.detach import claim_pid_file
from semipd.daemon.host.heap import freeze_heap
from semipd.daemon.host.log_file import LogFile
from semipd.daemon.host.process_limits import ConnectionRoom, raise_file_limit
from semipd.daemon.host.sd_notify import EXTENSION, Notifier
from semipd.daemon.host.terminal import Terminal
from semipd.daemon.model.files import DEMO_FOLDER, DEMO_NAME, ModelFiles
from semipd.daemon.requests.generation import GenerationService
from semipd.daemon.requests.options import EngineLimits
from semipd.daemon.requests.rules import RequestRules
from semipd.daemon.requests.table import RequestTable
from semipd.daemon.servers.http import serve_http
from semipd.daemon.servers.unix_socket import serve_unix_socket
from semipd.daemon.state.services import Services
from semipd.engine.launcher import EngineChild, spawn_engine
from semipd.system.children import ignore_signals, release_signals, signals_held
from semipd.system.logs import configure_logging

log = logging.getLogger(__name__)

T = TypeVar("T")

EXIT_FORCED = 130

WEIGHTLESS = ("fake",)
"""Devices that load none, beside those that are simulated."""


def run(
    config: Config,
    spawn: Callable[[], EngineChild] = spawn_engine,
    *,
    pid_file: Path | None = None,
    log_file: Path | None = None,
    on_ready: Callable[[str], None] = lambda _announcement: None,
) -> int:
    """Run the daemon until it is stopped. Call from the main thread. `log_file`: where standard error goes,
    if somebody has opened a file for it. `on_ready` gets what a person needs to try it. Returns the exit
    code: 0 when asked to stop, 1 when the engine was given up, 130 when asked twice. Raises SemipdError when
    the start fails."""
    configure_logging(config.server.log_format, config.server.log_level)
    for note in (raise_file_limit(), ConnectionRoom.of(config.limits.max_connections).note):
        if note is not None:
            log.warning("%s", note)
    with ExitStack() as stack:
        stack.enter_context(signals_held())
        ignore_signals()
        if pid_file is not None and (stale := stack.enter_context(claim_pid_file(pid_file))) is not None:
            log.warning("the daemon before, pid %d, left its pid file %s behind", stale, pid_file)
        is_simulated = config.engine.device.startswith("sim:")
        if is_simulated or config.engine.device in WEIGHTLESS:
            files = ModelFiles.open(DEMO_NAME if is_simulated else config.model.name)
        else:
            max_model_len = config.model.max_model_len
            files = ModelFiles.open(config.model.name, lambda model: load_model_config(model, max_model_len))
            check_weight_files(files.folder)
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        notifier = stack.enter_context(closing(Notifier.from_environment(os.environ)))
        daemon = Daemon(config, files, spawn, on_ready, notifier, LogFile(log_file) if log_file else None)
        # What is being closed may swallow the cancellation, so the daemon itself says that it was forced.
        with suppress(asyncio.CancelledError):
            code = runner.run(daemon.live())
        return EXIT_FORCED if daemon.was_forced else code


class Daemon:
    """One life cycle."""

    def __init__(
        self,
        config: Config,
        files: ModelFiles,
        spawn: Callable[[], EngineChild],
        on_ready: Callable[[str], None],
        notifier: Notifier,
        log_file: LogFile | None = None,
    ) -> None:
        self.was_forced = False
        self._log_file = log_file
        self._terminal = Terminal()
        self._notifier = notifier
        self._services: Services | None = None
        self._reloading: set[asyncio.Task[None]] = set()
        self._config = config
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        # the demo model writes stories
        self._answers_questions = files.chat_template is not None and files.folder != DEMO_FOLDER
        settings = config.engine_settings(files.folder)
        self._supervisor = Supervisor(settings, spawn, config.supervision)
        self._supervisor.on_ready.append(self._engine_is_ready)
        self._supervisor.observer = self._table = RequestTable(self._supervisor)
        self._generation = GenerationService(files, self._table, RequestRules.of(config))

    async def live(self) -> int:
        """Start, serve, stop. Returns the exit code: 0 when asked to stop, 1 when the engine is given up.
        Raises SemipdError when the start fails."""
        self._main = asyncio.current_task()
        self._listen_to_signals()
        async with AsyncExitStack() as stack:
            port = await self._open(stack)
            ready = await self._unless_stopped(self._start())
            if ready is None:
                return 0
            self._begin(port)
            error = await self._unless_stopped(self._supervisor.failed())
            if error is None:
                return 0
            log.error("%s The daemon ends.", error)
            self._table.close(error)
            return 1

    async def _start(self) -> EngineReady:
        """The engine, and meanwhile a trial of the chat template."""
        trial = asyncio.create_task(self._try_template(), name="template-trial")
        try:
            ready = await self._supervisor.start()
            await trial
        finally:
            trial.cancel()
        return ready

    async def _try_template(self) -> None:
        """One that cannot write a short conversation is told of now; completions work without it."""
        error = await self._generation.prompts.try_template()
        if error is not None and error.code != "invalid_messages":  # some want a system message, or tools
            log.warning("a trial of the chat template failed: %s", error)

    async def _open(self, stack: AsyncExitStack) -> int:
        """Everything but the engine. Returns the HTTP port."""
        server = self._config.server
        self._services = services = Services(
            self._config.served_model_name,
            self._supervisor,
            self._table,
            self._generation,
            self._shut_down,
            self._config,
        )
        auth = services.auth
        listeners = claim_http(server.host, server.port, server.backlog, needs_key=auth.needs_key)
        port: int = listeners[0].getsockname()[1]
        for listener in listeners:
            stack.callback(listener.close)
        claimed = claim_socket(self._config.socket_path, server.backlog, auth.guests_gid)
        unix_listener = stack.enter_context(claimed)
        stack.push_async_callback(self._supervisor.stop)
        await stack.enter_async_context(services.vitals.watched())
        await stack.enter_async_context(services.drain.watched())
        # Served from the beginning, so that /health and /ready tell a slow start from a dead one.
        await stack.enter_async_context(serve_http(services, listeners, server.backlog))
        await stack.enter_async_context(serve_unix_socket(services, unix_listener, server.backlog))
        stack.callback(self._table.close, SemipdError("shutting_down", "The daemon is shutting down."))
        await stack.enter_async_context(self._notifier.watched(services.makes_progress, self._words))
        stack.callback(self._notifier.say, STOPPING="1")
        return port

    def _words(self) -> dict[str, str]:
        """For systemd."""
        services = self._services
        assert services is not None
        words = {"STATUS": services.in_one_line()}
        if services.drain.stops:
            return words | {"STOPPING": "1"} | EXTENSION
        return words | (EXTENSION if self._supervisor.state == "starting" else {})

    def _engine_is_ready(self, ready: EngineReady) -> None:
        """The first engine, or one in the place of a dead one."""
        self._generation.engine_is_ready(EngineLimits.of(ready.info))
        for note in ready.notes:
            log.warning("%s", note)

    def _begin(self, port: int) -> None:
        config = self._config
        host, model = config.server.host, config.served_model_name
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        curl = (_chat_curl if self._answers_questions else _completion_curl)(address, model)
        text = f"semipd serves {model} at {address}\nsocket {config.socket_path}\ntry: {curl}\n"
        self._announce(text)
        self._notifier.say(READY="1")
        freeze_heap()
        self._on_ready(text)

    def _announce(self, text: str) -> None:
        """Nobody's requests depend on whether it can be read."""
        with suppress(OSError):  # unbuffered, it is raised here; else by the flush
            sys.stdout.write(text)
        if why := flush(sys.stdout):
            log.warning("standard output cannot be written: %s", why.strerror or why)

    def _shut_down(self, why: str) -> None:
        """Nothing runs any more, or the time for it is over."""
        if not self._stop.is_set():
            log.info("stopping: %s", why)
            self._stop.set()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_log)
        release_signals()

    def _on_signal(self, number: signal.Signals) -> None:
        """The first lets requests finish; the second does not wait for anybody any more."""
        drain = self._services.drain if self._services is not None else None
        if drain is None:
            self._shut_down(f"received {number.name}")
            return
        if not drain.stops and not self._stop.is_set():
            log.info("received %s; a second one stops at once", number.name)
            drain.begin(number.name, stops=True)
            return
        log.warning("received %s again: stopping at once", number.name)
        self.was_forced = True
        self._supervisor.kill()
        assert self._main is not None
        self._main.cancel()

    def _on_hangup(self) -> None:
        """Read the key files and open the log file again; or, if it was the terminal's, stop."""
        if self._terminal.was_closed():
            self._on_closed_terminal()
            return
        if self._log_file is not None:
            self._reopen_log()
        if self._services is not None:
            task = asyncio.create_task(self._services.auth.reload(), name="reload-keys")
            self._reloading.add(task)
            task.add_done_callback(self._reloading.discard)

    def _on_closed_terminal(self) -> None:
        """It is often told twice, by the system and by the shell."""
        drain = self._services.drain if self._services is not None else None
        if drain is None or not drain.stops:
            log.warning("the terminal was closed")
            self._on_signal(signal.SIGHUP)

    def _reopen_log(self) -> None:
        if self._log_file is None:
            log.info("there is no log file to open again: the log goes to standard error")
        elif self._log_file.reopen():
            self._supervisor.reopen_log()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The coroutine's result; None, and the coroutine cancelled, when somebody asks to stop first."""
        working = asyncio.create_task(work, name="engine-work")
        stop = asyncio.create_task(self._stop.wait(), name="stop-watch")
        try:
            await asyncio.wait([working, stop], return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stop.cancel()
            await asyncio.wait([working, stop])


def _completion_curl(address: str, model: str) -> str:
    body = f'{{"model": "{model}", "prompt": "Once upon a time", "max_tokens": 64, "stream": true}}'
    return _curl(f"{address}/v1/completions", body)


def _chat_curl(address: str, model: str) -> str:
    question = '[{"role": "user", "content": "What is the capital of France?"}]'
    body = f'{{"model": "{model}", "messages": {question}, "max_tokens": 64, "temperature": 0}}'
    return _curl(f"{address}/v1/chat/completions", body)


def _curl(url: str, body: str) -> str:
    return f"curl -N {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
