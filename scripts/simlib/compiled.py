"""The simulator as machine code: a copy of the package whose busiest modules mypyc has compiled from the very
source that serves requests. Whoever has the copy first on his path simulates with it, see
scripts/compile_simulator.py, which also holds it equal to the source on random cases."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

COMPILED = (
    "memory/*.py",
    "sched/*.py",
    "partition/*.py",
    "partition/*/*.py",
    "engine/coordinator.py",
    "engine/lane_state.py",
    "engine/pace.py",
    "engine/slow_steps.py",
    "engine/step_sizes.py",
    "engine/work.py",
    "devices/sim/contention.py",
    "devices/sim/cost.py",
    "devices/sim/device.py",
    "devices/sim/lane.py",
    "devices/sim/tokens.py",
    "sim/outcomes.py",
    "sim/simulator.py",
    "sim/workloads/prompts.py",
)
"""Where a simulation spends its time. What only holds data gains nothing."""

MAX_COMPILE_S = 900.0


def modules(package: Path) -> list[Path]:
    """Those to be compiled, relative to the package's parent."""
    found = [path for pattern in COMPILED for path in sorted(package.glob(pattern))]
    return [path.relative_to(package.parent) for path in found if path.name != "__init__.py"]


def make_copy(package: Path, folder: Path) -> bool:
    """Compile `package` into `folder`, in a minute or two; False: the copy there is of this source already.
    Raises subprocess.CalledProcessError with the compiler's words."""
    stamp, digest = folder / "source.sha256", _digest(package)
    if stamp.is_file() and stamp.read_text() == digest:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    names = [str(path) for path in modules(folder / package.name)]
    command = [sys.executable, "-m", "mypyc", "--ignore-missing-imports", *names]
    environment = os.environ | {"MYPYC_OPT_LEVEL": "1", "MYPYC_DEBUG_LEVEL": "0"}
    subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, timeout=MAX_COMPILE_S
    )
    shutil.rmtree(folder / "build")
    stamp.write_text(digest)
    return True


def is_compiled() -> bool:
    """Does this process simulate with machine code?"""
    from semipd.sim import simulator

    return not str(simulator.__file__).endswith(".py")


def _digest(package: Path) -> str:
    """Of everything the copy depends on."""
    import mypy.version  # only who compiles needs it

    digest = hashlib.sha256(f"{COMPILED} {mypy.version.__version__} {sys.version}".encode())
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
