"""The engine process: opens the device, then hosts the coordinator until the daemon goes away."""

import logging
import os
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import asdict

from semipd import __version__
from semipd.checkpoints.progress import Report
from semipd.core.errors import ProtocolError, SemipdError
from semipd.core.settings import EngineSettings
from semipd.devices.contract import Device
from semipd.engine.coordinator import Coordinator
from semipd.engine.saved_times import SAVE_EVERY_S, SavedTimes
from semipd.partition.step_times.models import Models
from semipd.system.children import follow_parents_log, ignore_signals, release_signals
from semipd.system.logs import configure_logging
from semipd.system.readiness import any_readable
from semipd.wire.channel import Channel
from semipd.wire.engine_link import LINK_FRAME_BYTES, inbound_from_wire, outbound_to_wire

SETTINGS_LIMIT_S = 600.0
"""They are sent at once; a daemon that is stopped in between sends them when it goes on."""

FAILURE_LIMIT_S = 2.0
IDLE_WAIT_S = 60.0

log = logging.getLogger("semipd.engine")


def run_engine(link_fd: int) -> int:
    """Whole life of the process. Returns the exit code: 0 when the daemon has closed the link, 1 on failure.
    A failure is told before the device is closed: that may hang when the device is what failed."""
    configure_logging("text")
    stop = _StopFlag()
    with socket.socket(fileno=link_fd) as sock, ExitStack() as opened:
        link = Channel(sock, LINK_FRAME_BYTES)
        try:
            settings = _receive_settings(link)
            configure_logging(settings.log_format)
            patience = settings.start_patience
            device = open_device(settings, lambda phase, limit_s: _report(link, phase, limit_s * patience))
            opened.callback(device.close)
            return _serve(device, settings, link, stop)
        except SemipdError as error:
            log.error("engine failed [%s]: %s", error.code, error)
            return _fail(link, error.code, error.message, error.hint)
        except Exception as error:
            log.exception("engine failed")
            return _fail(link, "engine_bug", repr(error), "Please report it.")


def open_device(settings: EngineSettings, report: Report) -> Device:
    """The device that the settings name. Raises SemipdError: `unknown_device`, `conflicting_options`, and
    whatever opening raises."""
    if settings.sim_profile and not settings.device.startswith("sim:"):
        message = f"engine.sim_profile is set, but engine.device is {settings.device}."
        raise SemipdError(
            "conflicting_options", message, "Leave one of them out.", param="engine.sim_profile"
        )
    match settings.device:
        case "fake":
            from semipd.devices.fake import FakeDevice

            return FakeDevice.open(settings)
        case "cpu":
            from semipd.devices.cpu.device import CpuDevice

            return CpuDevice.open(settings, report)
        case "cuda":
            from semipd.devices.cuda.start.entry import open_cuda

            return open_cuda(settings, report)
        case device if device.startswith("sim:"):
            from semipd.devices.sim.device import SimDevice

            return SimDevice.open(settings)
    raise SemipdError(
        "unknown_device",
        f"engine.device = {settings.device!r} is no device of this release: cpu, cuda, sim:<gpu>, fake.",
        "Use --device cpu.",
        param="engine.device",
    )


def _serve(device: Device, settings: EngineSettings, link: Channel, stop: "_StopFlag") -> int:
    models, saved = Models(device.info.num_units), SavedTimes(settings, device.info)
    if note := saved.load(models):
        log.info("%s", note)
    coordinator = Coordinator(device, settings, models)
    notes = []
    if coordinator.policy != settings.scheduler:
        notes.append(
            f"scheduler {settings.scheduler} needs a device that can be divided; {device.info.name} cannot: "
            f"running {coordinator.policy}"
        )
    ready = {"op": "ready", "info": asdict(device.info), "scheduler": coordinator.policy, "notes": notes}
    link.send(ready | {"version": __version__, "pid": os.getpid()})
    try:
        _host(coordinator, saved, link, stop)
    finally:
        saved.save(models)
    return 0


def _host(coordinator: Coordinator, saved: SavedTimes, link: Channel, stop: "_StopFlag") -> None:
    """Turn the loop; between turns wait for a lane, a message or a timer."""
    checked_idle = False
    save_due_s = time.monotonic() + SAVE_EVERY_S
    while not link.peer_gone and not stop.asked:
        inbox = [inbound_from_wire(message) for message in link.receive()]
        turn = coordinator.tick(time.monotonic_ns(), inbox)
        link.send(*map(outbound_to_wire, turn.outbox))
        if turn.idle and not checked_idle:
            coordinator.check_integrity()
        checked_idle = turn.idle
        if time.monotonic() >= save_due_s:
            saved.save(coordinator.control.models)
            save_due_s = time.monotonic() + SAVE_EVERY_S
        _wait(coordinator.device, link, stop, turn.wake_at_ns)


def _wait(device: Device, link: Channel, stop: "_StopFlag", wake_at_ns: int | None) -> None:
    timeout_s = IDLE_WAIT_S
    if wake_at_ns is not None:
        timeout_s = max(0.0, (wake_at_ns - time.monotonic_ns()) / 1e9)
    any_readable([link.fileno(), stop.fileno(), *device.files()], timeout_s)


def _report(link: Channel, phase: str, limit_s: float) -> None:
    link.send({"op": "phase", "name": phase, "limit_s": limit_s})
    assert not link.receive(), "the daemon speaks before the engine is ready"
    if link.peer_gone:
        raise SemipdError("daemon_gone", f"The daemon went away before the phase {phase!r}.")


def _receive_settings(link: Channel) -> EngineSettings:
    messages = link.receive_within(SETTINGS_LIMIT_S)
    if not messages:
        raise ProtocolError("no_settings", f"The daemon sent no settings within {SETTINGS_LIMIT_S:g} s.")
    return EngineSettings.from_wire(messages[0]["settings"])


def _fail(link: Channel, code: str, message: str, hint: str) -> int:
    """Tell the daemon why the process ends. Returns its exit code."""
    link.send({"op": "failed", "code": code, "message": message, "hint": hint})
    link.flush_within(FAILURE_LIMIT_S)
    return 1


class _StopFlag:
    """SIGTERM asks for an orderly end; a pipe wakes the loop. SIGINT and SIGHUP belong to the daemon, which
    sends SIGUSR1 when its standard error stream goes to another file."""

    def __init__(self) -> None:
        self.asked = False
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: follow_parents_log())
        ignore_signals()
        release_signals()

    def _ask(self, signum: int, frame: object) -> None:
        self.asked = True
        os.write(self._writer, b"x")

    def fileno(self) -> int:
        return self._reader
