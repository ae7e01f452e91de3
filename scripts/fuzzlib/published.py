"""schemathesis, as a program of its own, over the document that the daemon publishes."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzzlib.families import Outcome

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
LIMIT_S = 1800
EXAMPLES = 100
LEFT_OUT = ["/v1/events", "/v1/drain"]
"""A stream without an end, and what would make every other answer a 503."""


def run_schemathesis(url: str, seed: int, max_examples: int = EXAMPLES) -> Outcome:
    outcome = Outcome("schemathesis over /openapi.json")
    beside = Path(sys.executable).with_name("schemathesis")
    program = str(beside) if beside.exists() else shutil.which("schemathesis")
    if program is None:
        outcome.note = "not installed: pip install semipd[fuzz]"
        return outcome
    command = [program, "run", f"{url}/openapi.json", "--checks", CHECKS, "--max-examples", str(max_examples)]
    command += ["--seed", str(seed), "--phases", "examples,coverage,fuzzing", "--request-timeout", "60"]
    for path in LEFT_OUT:
        command += ["--exclude-path", path]
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="semipd-fuzz-") as folder:  # it leaves files where it runs
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=folder)
    except subprocess.TimeoutExpired:
        outcome.violations.append(f"schemathesis did not end within {LIMIT_S} s")
        return outcome
    finally:
        outcome.seconds = time.monotonic() - began_s
    found = re.search(r"(\d+) generated", done.stdout)
    outcome.cases = int(found[1]) if found else 0
    outcome.note = f"exit code {done.returncode}"
    if done.returncode != 0:
        outcome.violations.append(done.stdout[-6000:] + done.stderr[-2000:])
    return outcome
