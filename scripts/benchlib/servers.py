"""Starting and stopping the servers that are compared, and finding out what they accept."""

import asyncio
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchlib.child import mortal
from benchlib.load.http_client import HttpClient, HttpStatusError
from benchlib.load.records import Record
from benchlib.load.targets import HttpTarget, RefusedError
from semipd.core.errors import SemipdError
from semipd.system.children import kill_group

POLL_S = 0.25
REQUEST_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0
LOG_TAIL_CHARS = 2000

WANTED_FIELDS: dict[str, Any] = {
    "temperature": 0.0,
    "ignore_eos": True,
    "stream_options": {"include_usage": True},
}
"""Sent to every server that does not refuse them; some refuse fields they do not know."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server: one that runs at `url`, or a `command` in which {model}, {port}, {folder} (for
    whatever it needs) and {bin} (this interpreter's) are filled in."""

    name: str
    command: tuple[str, ...] = ()
    url: str = ""

    @classmethod
    def parse(cls, text: str) -> "Peer":
        """ "NAME=http://host:port" or "NAME=command ...". Raises SemipdError."""
        name, equals, rest = text.partition("=")
        if not (name and equals and rest.strip()):
            message = f"--peer {text!r} is neither a known name nor NAME=URL nor NAME=COMMAND."
            raise SemipdError("invalid_value", message)
        if rest.startswith(("http://", "https://")):
            return cls(name, url=rest)
        return cls(name, tuple(shlex.split(rest)))


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that answers. `pid`: of the process we started, else None. `model`: what requests call it,
    "" when they leave it out. `fields`: of WANTED_FIELDS, those it accepts."""

    url: str
    pid: int | None
    model: str
    fields: dict[str, Any]

    def target(self) -> HttpTarget:
        return HttpTarget(self.url, self.fields, self.model)


@asynccontextmanager
async def serving(
    peer: Peer, model_dir: Path, folder: Path, prompt: str, start_limit_s: float
) -> AsyncIterator[Serving]:
    """Start the peer if it has a command, wait until it completes `prompt`, and stop it at the end.

    `folder`: for its log and whatever the command puts there. Raises SemipdError: `peer_failed` when it
    ends, `peer_silent` when it does not answer in time.
    """
    if not peer.command:
        yield await _get_to_know(peer, peer.url, None, prompt, start_limit_s)
        return
    port = _free_port()
    values = {"model": str(model_dir), "port": str(port), "folder": str(folder)}
    values["bin"] = str(Path(sys.executable).parent)
    command = [_fill(word, values) for word in peer.command]
    log = folder / f"{peer.name}.log"
    process = _spawn(command, log)
    try:
        url = f"http://127.0.0.1:{port}"
        yield await _get_to_know(peer, url, process, prompt, start_limit_s)
    except SemipdError as error:
        tail = log.read_text(errors="replace")[-LOG_TAIL_CHARS:]
        raise SemipdError(error.code, f"{error.message}\n{tail}".rstrip(), error.hint) from error
    finally:
        await _stop(process)


def _fill(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _spawn(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    """Call from the main thread."""
    with log.open("ab") as output:
        # a session of its own: stopping it ends whatever it has started
        return subprocess.Popen(
            mortal(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


async def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to the server; after a while SIGKILL to it and all it has left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(process.wait, STOP_LIMIT_S)
    kill_group(process)
    process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _get_to_know(
    peer: Peer, url: str, process: "subprocess.Popen[bytes] | None", prompt: str, limit_s: float
) -> Serving:
    """Ask until it completes a prompt, then find out which fields it accepts."""
    deadline_s = time.monotonic() + limit_s
    while True:
        try:
            model = await _model_name(url, prompt)
            break
        except SemipdError as error:
            if process is not None and process.poll() is not None:
                message = f"{peer.name} ended with code {process.returncode} before it served."
                raise SemipdError("peer_failed", message) from error
            if time.monotonic() > deadline_s:
                message = f"{peer.name} did not serve within {limit_s:g} s ({error.code}: {error.message})."
                raise SemipdError("peer_silent", message) from error
        await asyncio.sleep(POLL_S)
    fields = {
        name: value
        for name, value in WANTED_FIELDS.items()
        if await _accepts(HttpTarget(url, {name: value}, model), prompt)
    }
    return Serving(url, None if process is None else process.pid, model, fields)


async def _model_name(url: str, prompt: str) -> str:
    """The first listed name that works, else "" (a server of one model may list others, or none).

    Raises SemipdError when the server does not complete a prompt (yet)."""
    try:
        cards = (await HttpClient(url).get_json("/v1/models")).get("data") or []
    except HttpStatusError:
        cards = []
    for name in [str(card["id"]) for card in cards[:1]]:
        if await _accepts(HttpTarget(url, {}, name), prompt):
            return name
    await _complete(HttpTarget(url, {}, ""), prompt)
    return ""


async def _accepts(target: HttpTarget, prompt: str) -> bool:
    try:
        await _complete(target, prompt)
    except RefusedError:
        return False
    return True


async def _complete(target: HttpTarget, prompt: str) -> Record:
    """Two tokens. Raises SemipdError."""
    record = Record(0, 0, 2)
    try:
        async with asyncio.timeout(REQUEST_LIMIT_S):
            await target.prepare(prompt, 2).send(record, time.perf_counter())
    except TimeoutError as error:
        message = f"Two tokens took longer than {REQUEST_LIMIT_S:g} s."
        raise SemipdError("peer_silent", message) from error
    return record
