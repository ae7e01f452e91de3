"""A child that renders conversations: `python -m semipd.daemon.prompts.render_child <parent pid> <link fd>`.

It reads pickles from the daemon, which it trusts: first (source, special tokens, most characters, memory),
then conversations. It answers in msgpack, as the daemon trusts no template, and adds the CPU time that it has
used. Each message has its length before it.
"""

import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from semipd.core.errors import SemipdError
from semipd.daemon.model.chat_template import LIMIT_CODE, ChatTemplate, out_of_memory
from semipd.daemon.prompts.conversation import Conversation, written
from semipd.system.parent_death import die_with_parent

LENGTH = struct.Struct(">Q")


def serve(link: socket.socket) -> None:
    """Until the daemon hangs up, or memory has run out."""
    source, special_tokens, max_chars, memory_bytes = _receive(link)
    _limit_memory(memory_bytes)
    try:
        template = ChatTemplate(source, special_tokens, max_chars)
        template.compile()
    except SemipdError as error:
        _send(link, _refused(error))
        return
    _send(link, ["", "ready"])
    while (conversation := _receive(link)) is not None:
        answer = _answer(conversation, template)
        _send(link, answer)
        if answer[0] == LIMIT_CODE:
            return


def _answer(conversation: Conversation, template: ChatTemplate) -> list[str | None]:
    """["", text], or an error's code, message, hint and param."""
    try:
        return ["", written(conversation, template)]
    except MemoryError:
        error = out_of_memory()
    except SemipdError as raised:
        error = raised
    return _refused(error)


def _refused(error: SemipdError) -> list[str | None]:
    return [error.code, error.message, error.hint, error.param]


def _send(link: socket.socket, answer: list[str | None]) -> None:
    data: bytes = msgpack.packb([*answer, time.process_time()], unicode_errors="surrogatepass")
    link.sendall(LENGTH.pack(len(data)))
    link.sendall(data)


def _receive(link: socket.socket) -> Any:
    """None: the daemon has hung up."""
    head = _read(link, LENGTH.size)
    return pickle.loads(_read(link, LENGTH.unpack(head)[0])) if head else None


def _read(link: socket.socket, num_bytes: int) -> bytes:
    """Empty when the daemon has hung up."""
    data = bytearray(num_bytes)
    view, done = memoryview(data), 0
    while done < num_bytes:
        received = link.recv_into(view[done:])
        if not received:
            return b""
        done += received
    return bytes(data)


def _limit_memory(num_bytes: int) -> None:
    """What we have already, and so much more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's affair
    with socket.socket(fileno=int(sys.argv[2])) as link:
        try:
            serve(link)
        except (ConnectionError, MemoryError):
            os._exit(1)


if __name__ == "__main__":
    main()
