"""Make a compiled copy of the simulator, which gives the same figures in half the time.

    python scripts/compile_simulator.py --check 2000
    PYTHONPATH=build/compiled python scripts/compare_policies.py --traces FOLDER

mypyc compiles the modules in which a simulation spends its time from their own source; nothing is written
twice. Needs mypy, setuptools and a C compiler. After a change of the source make it again: a copy of other
source is replaced, and until then it simulates what it was made of. `--check` runs random simulations with
both and compares every figure exactly.
"""

import argparse
import os
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

from simlib.compiled import is_compiled, make_copy
from simlib.random_cases import outcomes, write_traces

import semipd

FOLDER = Path("build/compiled")


def main() -> int:
    arguments = _parser().parse_args()
    traces = arguments.folder / "traces"
    if arguments.run:
        assert is_compiled() == (arguments.run == "compiled"), (
            f"{semipd.__file__} is not the {arguments.run} one"
        )
        for line in outcomes(range(arguments.first, arguments.first + arguments.check), traces):
            print(line)
        return 0
    package = Path(semipd.__file__).resolve().parent
    try:
        made = make_copy(package, arguments.folder.resolve())
    except subprocess.CalledProcessError as error:
        print(error.stdout.decode()[-4000:], error.stderr.decode()[-4000:], file=sys.stderr)
        return 1
    print(f"{arguments.folder}: {'made' if made else 'up to date'}", file=sys.stderr)
    write_traces(traces)
    return _compare(arguments) if arguments.check else 0


def _compare(arguments: argparse.Namespace) -> int:
    """Run both at once and report the first case whose figures differ."""
    command = [sys.executable, __file__, "--folder", str(arguments.folder)]
    command += ["--first", str(arguments.first), "--check", str(arguments.check), "--run"]
    here = os.environ | {"PYTHONPATH": ""}
    there = os.environ | {"PYTHONPATH": str(arguments.folder.resolve())}
    with (
        subprocess.Popen([*command, "source"], env=here, stdout=subprocess.PIPE, text=True) as source,
        subprocess.Popen([*command, "compiled"], env=there, stdout=subprocess.PIPE, text=True) as compiled,
    ):
        assert source.stdout is not None
        assert compiled.stdout is not None
        num_equal = 0
        for ours, theirs in zip_longest(source.stdout, compiled.stdout):
            if ours != theirs:
                print(f"case {arguments.first + num_equal} differs\n{ours}\n{theirs}", file=sys.stderr)
                source.kill()
                compiled.kill()
                return 1
            num_equal += 1
    print(f"{num_equal} of {arguments.check} random simulations are equal")
    return int(num_equal != arguments.check)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--check", type=int, default=0, metavar="N", help="compare N random simulations")
    add("--first", type=int, default=0, metavar="SEED", help="of the first of them")
    add("--folder", type=Path, default=FOLDER)
    add("--run", choices=["source", "compiled"], help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
