"""Runs our four commands with arguments, environments and terminals nobody chooses.

    python scripts/fuzz_commands.py [--cases 2000] [--seed 1] [--case INDEX]

Each case is a process: beside a good daemon on the fake device, none, and sockets that misbehave; with
standard streams that are closed, full, left by their reader, terminals of odd sizes; interrupted at any
moment. There must be no traceback, an exit code of the table, at least a line that says why it is not 0, and
an end in time. Prints a table; exit code 1 when something was violated.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from chaoslib.models import save_weightless
from chaoslib.target import Target
from fuzzlib.bad_sockets import bad_places
from fuzzlib.command_cases import GOOD
from fuzzlib.command_runs import Tally, run_cases


async def main() -> int:
    arguments = _arguments()
    indices = range(arguments.cases) if arguments.case is None else range(arguments.case, arguments.case + 1)
    with tempfile.TemporaryDirectory(prefix="semipd-fuzz-") as name:
        folder = Path(name)
        target = Target(
            folder, save_weightless(folder / "model"), "fake", {"model.served_model_name": "fuzz"}
        )
        try:
            await target.started()
            (folder / "bad").mkdir()
            with bad_places(folder / "bad") as places:
                good = {GOOD: str(target.socket_path)}
                tallies = await asyncio.to_thread(run_cases, arguments.seed, indices, good | places, folder)
            is_alive = not target.has_ended
            code = await target.stopped()
            tracebacks = target.log_count("Traceback (most")
        finally:
            if not target.has_ended:
                target.kill()
    _print(tallies)
    print(f"\nthe daemon: exit code {code}, {tracebacks} tracebacks in its log")
    is_well = is_alive and code == 0 and not tracebacks
    return 0 if is_well and not any(tally.violations for tally in tallies.values()) else 1


def _print(tallies: dict[str, Tally]) -> None:
    print("| command | cases | CPU and waiting, s | exit codes | violations |\n|---|---|---|---|---|")
    for command, tally in tallies.items():
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(tally.codes.items()))
        print(
            f"| semipd-{command} | {tally.cases} | {tally.seconds:.0f} | {codes} | {len(tally.violations)} |"
        )
    for tally in tallies.values():
        for violation in tally.violations:
            print(f"\n{violation}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="only this one")
    return parser.parse_args()


if __name__ == "__main__":
    # A shell's background job ignores interrupts, and so would the commands that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(asyncio.run(main()))
