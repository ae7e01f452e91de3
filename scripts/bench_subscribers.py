"""What subscribers of state frames cost: CPU time of daemon and engine under a steady load.

    python scripts/bench_subscribers.py [--subscribers 0 1 4] [--rounds 3] [--seconds 20] [--json FILE]

Starts a daemon on a simulated GPU and keeps streams going (--streams 0: none). The numbers of subscribers
(4 Hz, with events) take turns, so that a drift of the machine hits all of them alike. Load and subscribers
run in this process, which is not counted.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from benchlib.procfs import cpu_used, process_tree

from semipd.client import AsyncClient
from semipd.core.errors import SemipdError
from semipd.system.children import module_command

PROMPT_TOKENS = 200
OUTPUT_TOKENS = 2000
START_LIMIT_S = 120.0
SETTLE_S = 3.0

Percents = tuple[float, float]
"""Of one core: daemon, engine."""


async def stream_for_ever(path: Path, number: int) -> None:
    """One request after the other."""
    async with await AsyncClient.connect(path) as client:
        while True:
            prompt = [1 + number] * PROMPT_TOKENS
            async for _item in client.generate(prompt, max_tokens=OUTPUT_TOKENS, ignore_eos=True):
                pass


async def subscribe_for_ever(path: Path, interval_ms: int) -> None:
    async with (
        await AsyncClient.connect(path) as client,
        client.subscribe(interval_ms=interval_ms, events=True) as states,
    ):
        async for frame in states:
            assert frame.state["kv"] is not None, "the engine did not answer"


@asynccontextmanager
async def meanwhile(work: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Raises what ended one of them too early."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        await asyncio.sleep(SETTLE_S)
        yield
        for task in tasks:
            assert not task.done(), task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def daemon(device: str, model: str, folder: Path) -> Iterator[tuple[Path, int]]:
    """Its socket and its pid, when it serves."""
    path, log = folder / "daemon.sock", folder / "log"
    command = [*module_command("semipd.commands.daemon"), "start", "--device", device, "--model", model]
    command += ["--socket", str(path), "--port", "0", "--set", "drain.limit_s=0"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline_s = time.monotonic() + START_LIMIT_S
            while "semipd serves" not in log.read_text():
                assert process.poll() is None, f"the daemon ended: {log.read_text()}"
                assert time.monotonic() < deadline_s, f"the daemon does not come up: {log.read_text()}"
                time.sleep(0.1)
            yield path, process.pid
            assert process.poll() is None, f"the daemon ended: {log.read_text()}"
        except SemipdError as error:
            raise SystemExit(f"{error.message}\n{log.read_text()}") from error
        finally:
            process.terminate()


async def spent(pid: int, seconds: float) -> Percents:
    """By the process `pid` and by its descendants, within so many seconds from now."""
    before, began_s = process_tree(pid), time.monotonic()
    await asyncio.sleep(seconds)
    used, elapsed_s = cpu_used(before, process_tree(pid)), time.monotonic() - began_s
    own_s = sum(process.cpu_s for process in used if process.pid == pid)
    all_s = sum(process.cpu_s for process in used)
    return 100 * own_s / elapsed_s, 100 * (all_s - own_s) / elapsed_s


async def measure(args: argparse.Namespace, path: Path, pid: int) -> dict[int, list[Percents]]:
    """Per number of subscribers, one pair a round."""
    found: dict[int, list[Percents]] = {num: [] for num in args.subscribers}
    async with meanwhile([stream_for_ever(path, number) for number in range(args.streams)]):
        for _ in range(args.rounds):
            for num in args.subscribers:
                async with meanwhile([subscribe_for_ever(path, args.interval_ms) for _ in range(num)]):
                    found[num].append(await spent(pid, args.seconds))
                print(
                    f"{num} subscribers: daemon {found[num][-1][0]:.2f} %, engine {found[num][-1][1]:.2f} %"
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="sim:h200")
    parser.add_argument("--model", default="llama-3-8b")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--interval-ms", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="semipd-bench-") as folder,
        daemon(args.device, args.model, Path(folder)) as (path, pid),
    ):
        found = asyncio.run(measure(args, path, pid))
    print("subscribers   daemon % of a core   engine % of a core   (medians)")
    for num, pairs in found.items():
        own, engine = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"{num:11d}   {own:18.2f}   {engine:18.2f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
