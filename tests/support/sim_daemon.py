"""A whole daemon, on a simulated GPU or on the CPU, that a test may stop, kill and start again; and load."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.eventually import eventually_now

from semipd.client import AsyncClient, Client
from semipd.core.errors import SemipdError

LIMIT_S = 60


SIM = ("--device", "sim:h200", "--model", "llama-3-8b")
CPU = ("--device", "cpu")
"""With the bundled demo model."""


class SimDaemon:
    """`settings`: options of the configuration, such as {"supervision.backoff_s": 3}."""

    def __init__(
        self, folder: Path, settings: dict[str, object] | None = None, device: Sequence[str] = SIM
    ) -> None:
        self._device = device
        self.socket_path = folder / "s.sock"
        self._log = folder / "daemon.log"
        self._settings = {"server.port": 0, "server.socket": self.socket_path} | (settings or {})
        self.start()

    def start(self) -> None:
        """Returns when it serves."""
        command = [sys.executable, "-m", "semipd.commands.daemon", "start", *self._device]
        for key, value in self._settings.items():
            command += ["--set", f"{key}={value}"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        while "try:" not in (line := self._process.stdout.readline()):
            assert line, self._log.read_text()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def engine_pid(self) -> int:
        [engine] = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return int(engine)

    def client(self) -> Client:
        return Client.connect(self.socket_path)

    def stop(self) -> None:
        """Whatever runs is ended at once."""
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Load:
    """Streams that ask again when they have their answer, until an error; `failed` has its code."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.num_finished = 0
        self.failed: list[str] = []

    def grows(self, what: str) -> None:
        """Wait until tokens have come that were not there before."""
        before = self.num_tokens
        eventually_now(lambda: self.num_tokens > before, what)

    async def run(self, path: Path, num_streams: int, prompt_tokens: int, **options: Any) -> None:
        async with await AsyncClient.connect(path) as client:
            streams = (self._stream(client, prompt_tokens, options) for _ in range(num_streams))
            await asyncio.gather(*streams)

    async def _stream(self, client: AsyncClient, prompt_tokens: int, options: dict[str, Any]) -> None:
        """Until its client is told an error."""
        try:
            while True:
                prompt = [random.randrange(2, 400) for _ in range(prompt_tokens)]
                async for item in client.generate(prompt, ignore_eos=True, **options):
                    self.num_tokens += len(item.token_ids)
                self.num_finished += 1
        except SemipdError as error:
            self.failed.append(error.code)


@contextmanager
def load(path: Path, num_streams: int, prompt_tokens: int, **options: Any) -> Iterator[Load]:
    """In a thread, until the block is left. `options`: of each request, such as max_tokens."""
    made = Load()
    loop = asyncio.new_event_loop()
    task = loop.create_task(made.run(path, num_streams, prompt_tokens, **options))
    ended = asyncio.wait([task])
    thread = threading.Thread(target=loop.run_until_complete, args=(ended,), name="load")
    thread.start()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        loop.close()
