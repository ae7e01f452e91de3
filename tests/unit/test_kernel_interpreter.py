"""tests/kernels runs on the interpreter whatever was imported before, and leaves nothing of it behind."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os
import pytest
import semipd_kernels.silu_mul.launch as launch  # imports triton, compiled functions and all
from semipd_kernels import dispatch

assert type(launch.silu_mul_kernel).__name__ == "JITFunction"
kernels = "tests/kernels/test_silu_mul.py"
beside = "tests/unit/test_kernel_interpreter.py::test_other_tests_do_not_see_it"
status = pytest.main(["-q", "-p", "no:cacheprovider", kernels, beside])
assert status == 0, status
assert "TRITON_INTERPRET" not in os.environ
"""


def test_other_tests_do_not_see_it() -> None:
    assert "TRITON_INTERPRET" not in os.environ
    dispatch = sys.modules.get("semipd_kernels.dispatch")
    assert dispatch is None or vars(dispatch)["INTERPRETED"] is False


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")
def test_what_was_imported_before_does_not_matter() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
