"""Word to systemd: ready, stopping, status, and the watchdog's food. Its protocol is datagrams of NAME=value.

See sd_notify(3) and sd_watchdog_enabled(3).
"""

import asyncio
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Self

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
_MICROS = re.compile(r"[1-9][0-9]{0,17}")

EXTENSION = {"EXTEND_TIMEOUT_USEC": str(int(6 * INTERVAL_S * 1e6))}
"""While starting or stopping: each phase has a limit of its own, which systemd cannot know."""


class Notifier:
    """Says nothing when nobody listens. Words that cannot be delivered are lost: nobody waits for systemd."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        """`address`: a path, or an abstract name with @ before it. `watchdog_s`: how long systemd waits."""
        self.watchdog_s = watchdog_s
        self._address = address
        self._said_unreachable = False
        self._socket: socket.socket | None = None
        if address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Takes the variables away: they are meant for this process, not for its children."""
        address = environ.pop("NOTIFY_SOCKET", "")
        micros, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_ours = pid in ("", str(os.getpid()))
        watchdog_s = int(micros) / 1e6 if is_ours and _MICROS.fullmatch(micros) else None
        return cls(address if address[:1] in ("/", "@") else None, watchdog_s)

    def say(self, **words: str) -> None:
        """`say(READY="1", STATUS="...")`. A status is one line."""
        if self._socket is None or self._address is None:
            return
        text = "\n".join(f"{name}={value.replace(chr(10), ' ')}" for name, value in words.items())
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            self._socket.sendto(text.encode(), address)
            self._said_unreachable = False
        except OSError as error:
            if not self._said_unreachable:
                log.warning("systemd cannot be told %s: %s", "/".join(words), error.strerror)
            self._said_unreachable = True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    @asynccontextmanager
    async def watched(
        self, makes_progress: Callable[[], bool], words: Callable[[], Mapping[str, str]]
    ) -> AsyncIterator[None]:
        """While inside, `words` are said again and again, and the watchdog is fed as long as the event loop
        turns and `makes_progress`."""
        task = asyncio.create_task(self._keep_telling(makes_progress, words), name="sd-notify")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _keep_telling(
        self, makes_progress: Callable[[], bool], words: Callable[[], Mapping[str, str]]
    ) -> None:
        if self._socket is None:
            return
        interval_s = min(INTERVAL_S, (self.watchdog_s or INTERVAL_S) / 3)
        was_fed = True
        while True:
            is_fed = makes_progress()
            if is_fed != was_fed:
                log.warning(
                    "the watchdog of systemd is %s", "fed again" if is_fed else "not fed: no progress"
                )
            was_fed = is_fed
            food = {"WATCHDOG": "1"} if is_fed and self.watchdog_s else {}
            self.say(**words(), **food)
            await asyncio.sleep(interval_s)
