"""Sends the daemon what nobody should send, and what almost nobody would.

    python scripts/fuzz.py [--cases 20000] [--seed 1] [--no-schemathesis] [--no-cpu] [--checkout PATH]

A real daemon on the fake device gets requests made by Hypothesis: HTTP bodies, broken bodies, whole HTTP
requests as bytes, frames and bytes for the Unix socket, numbers at the edges of every type, keys with several
spellings, more sequences than the queue holds; then, if it is installed (pip install semipd[fuzz]), what
schemathesis makes of the published /openapi.json. Another daemon with the demo model on the CPU gets the
numbers too. There must be no status 500, no silence, no traceback, no request that stays behind its answer,
no death of an engine and no process that has gone; at the end the daemon is ready, no request lives and no KV
block is in use. Prints a table; exit code 1 when something was violated. --checkout: the daemons under test
are those of another working tree.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from chaoslib.models import save_weightless
from chaoslib.target import Target
from fuzzlib.edges import MAX_WAITING
from fuzzlib.families import Outcome, run_edges, run_families
from fuzzlib.published import run_schemathesis
from fuzzlib.talk import is_ready

CHAT_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
OPTIONS = {
    "model.served_model_name": "fuzz",
    "model.max_model_len": 128,
    "limits.head_limit_s": 5,
    "admission.max_waiting_requests": MAX_WAITING,
    "server.log_level": "info",
}


CPU_OPTIONS = {"model.served_model_name": "fuzz", "model.max_model_len": 128, "supervision.backoff_s": 0.05}
CPU_SHARE = 0.05
"""Of the cases, for the device that computes."""


async def main() -> int:
    arguments = _arguments()
    code = await _on("fake", arguments)
    return code if arguments.no_cpu else max(code, await _on("cpu", arguments))


async def _on(device: str, arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="semipd-fuzz-") as name:
        folder = Path(name)
        target = _target(device, folder, arguments.checkout)
        try:
            await target.started()
            return await _torment(target, device, arguments)
        finally:
            if not target.has_ended:
                target.kill()


def _target(device: str, folder: Path, checkout: Path | None) -> Target:
    if device == "cpu":
        return Target(folder, "demo", device, CPU_OPTIONS, checkout)
    model = save_weightless(folder / "model")
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return Target(folder, model, device, OPTIONS, checkout)


async def _outcomes(target: Target, device: str, arguments: argparse.Namespace) -> list[Outcome]:
    if device == "cpu":
        cases = int(arguments.cases * CPU_SHARE)
        return await asyncio.to_thread(run_edges, target.url, cases, arguments.seed)
    outcomes = await asyncio.to_thread(
        run_families, target.url, target.socket_path, arguments.cases, arguments.seed
    )
    if not arguments.no_schemathesis:
        outcomes.append(await asyncio.to_thread(run_schemathesis, target.url, arguments.seed))
    return outcomes


async def _torment(target: Target, device: str, arguments: argparse.Namespace) -> int:
    outcomes = await _outcomes(target, device, arguments)
    ready = await asyncio.to_thread(is_ready, target.url)
    used_blocks = await target.settled()
    log = target.log_path.read_text(errors="replace")
    num_tracebacks = log.count("Traceback (most")
    if num_tracebacks:
        print(f"the first traceback in the log:\n{log[log.index('Traceback') - 300 :][:4000]}")
    code = await target.stopped()
    left = await target.left()
    _print(outcomes)
    facts = {
        "device": device,
        "cases": sum(outcome.cases for outcome in outcomes),
        "ready at the end": ready,
        "KV blocks in use": used_blocks,
        "tracebacks in the log": num_tracebacks,
        "exit code": code,
        "processes left": len(left),
    }
    print("\n" + "\n".join(f"{name}: {value}" for name, value in facts.items()))
    is_well = ready and used_blocks == 0 and num_tracebacks == 0 and code == 0 and not left
    return 0 if is_well and not any(outcome.violations for outcome in outcomes) else 1


def _print(outcomes: list[Outcome]) -> None:
    print("| family | cases | seconds | answers | violations |\n|---|---|---|---|---|")
    for outcome in outcomes:
        answers = ", ".join(f"{count} {what}" for what, count in outcome.tally.most_common(8))
        print(
            f"| {outcome.name} | {outcome.cases} | {outcome.seconds:.0f} | {answers or outcome.note} | "
            f"{len(outcome.violations)} |"
        )
    for outcome in outcomes:
        for violation in outcome.violations:
            print(f"\n{outcome.name}: {violation}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-schemathesis", action="store_true")
    parser.add_argument("--no-cpu", action="store_true", help="the fake device only")
    parser.add_argument("--checkout", type=Path, help="working tree of the daemon under test")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
