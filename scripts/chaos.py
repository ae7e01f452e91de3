"""A daemon under load while everything goes wrong. The exit code is 0 if no request was lost, no stream was
changed, no KV block leaked and no process left.

    python scripts/chaos.py --minutes 5
    python scripts/chaos.py --minutes 5 --device cpu
    python scripts/chaos.py --minutes 5 --nice-load 8
    python scripts/chaos.py --minutes 1 --faults kill-engine,full-queue --seed 3

The seed decides what is sent and which fault comes next, not when exactly. docs/reliability.md says what each
row means and how streams are judged.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from chaoslib.clients import send
from chaoslib.faults import FAULTS, NEEDS_WORKERS, Arena, inject
from chaoslib.jobs import Fate, Job, Meter, Outcome, Shape, draw_jobs
from chaoslib.judge import ExactJudge, Judge, ReferenceJudge
from chaoslib.load import busy_loops
from chaoslib.models import CONTEXT_TOKENS, VOCAB_SIZE, save_small_llama, save_weightless
from chaoslib.report import Result
from chaoslib.target import Target

from semipd.core.errors import SemipdError

EXIT_FAILED = 1
CHECK_EVERY_S = 0.2

OPTIONS: dict[str, object] = {
    "server.log_level": "debug",
    "supervision.interval_s": 0.25,
    "supervision.backoff_s": 0.1,
    "supervision.backoff_max_s": 2.0,
    "supervision.max_deaths": 100,
    "supervision.stall_s": 5.0,
    "supervision.start_patience": 0.1,
    "admission.max_waiting_requests": 40,
    "limits.head_limit_s": 5.0,
    "limits.body_limit_s": 5.0,
    "limits.max_unread_tokens": 256,
    "partition.mode": "auto",
}
"""Short limits and, below, few KV blocks, so that a short run sees all of them at work."""

_DEVICE_OPTIONS: dict[str, dict[str, object]] = {
    "fake": {
        "supervision.answer_limit_s": 2.0,
        "supervision.step_limit_s": 30.0,
        "kv.bytes": 110 * 128,
    },
    "cpu": {
        "supervision.answer_limit_s": 5.0,
        "supervision.step_limit_s": 60.0,
        "supervision.worker_step_limit_s": 5.0,
        "model.dtype": "float32",
        "kv.bytes": 80 * 12 * 1024,
        "partition.merge_tokens": 0,  # else the prefill lane rests most of the time
    },
}
_SHAPES = {
    "fake": Shape(VOCAB_SIZE, CONTEXT_TOKENS, 400, 250, is_greedy=False),
    "cpu": Shape(VOCAB_SIZE, CONTEXT_TOKENS, 250, 150, is_greedy=True),
}
_NUM_CLIENTS = {"fake": 12, "cpu": 8}
_ANSWER_LIMIT_S = 240.0
"""Without an end by then a request is lost. It may live through several engines. Time that the machine gives
to others does not count."""
REFUSED_PAUSE_S = 0.05
"""Nobody asks again at once."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        result = asyncio.run(_run(args))
    except SemipdError as error:
        print(f"error [{error.code}]: {error.message} {error.hint}".rstrip(), file=sys.stderr)
        return EXIT_FAILED
    print(result.text())
    if args.json:
        args.json.write_text(json.dumps(result.to_plain(), indent=1) + "\n")
    for problem in result.problems:
        print(f"FAILED {problem}", file=sys.stderr)
    return EXIT_FAILED if result.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="time under load (default 5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=sorted(_SHAPES), default="fake")
    parser.add_argument(
        "--faults", type=_faults, default=None, metavar="NAMES", help=f"of {', '.join(FAULTS)}"
    )
    parser.add_argument(
        "--nice-load", type=int, default=0, metavar="N", help="so many busy loops beside it (default 0)"
    )
    parser.add_argument("--clients", type=int, default=None, help="requests under way at once")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result there too")
    parser.add_argument(
        "--folder", type=Path, default=None, help="keep log and model there (default: nowhere)"
    )
    return parser


def _faults(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in FAULTS]:
        raise argparse.ArgumentTypeError(
            f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}"
        )
    return names


def _possible_faults(args: argparse.Namespace) -> list[str]:
    """Raises SemipdError: `impossible_fault`."""
    usable = [name for name in FAULTS if args.device == "cpu" or name not in NEEDS_WORKERS]
    chosen: list[str] = args.faults or usable
    if impossible := [name for name in chosen if name not in usable]:
        message = f"The device {args.device} has no workers, so it cannot suffer {', '.join(impossible)}."
        raise SemipdError("impossible_fault", message, "Leave them out, or use --device cpu.")
    return chosen


async def _run(args: argparse.Namespace) -> Result:
    _possible_faults(args)
    with tempfile.TemporaryDirectory(prefix="semipd-chaos-") as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        is_cpu = args.device == "cpu"
        model = folder / "model"
        save_small_llama(model, args.seed) if is_cpu else save_weightless(model)
        with busy_loops(args.nice_load):
            target = Target(folder, model, args.device, OPTIONS | _DEVICE_OPTIONS[args.device])
            try:
                await target.started()
                run = _Run(args, target, model)
                await run.under_load()
                return await run.end()
            finally:
                if not target.has_ended:
                    target.kill()


class _Run:
    def __init__(self, args: argparse.Namespace, target: Target, model: Path) -> None:
        self._target = target
        self._device: str = args.device
        self._seconds = args.minutes * 60
        self._num_clients = args.clients or _NUM_CLIENTS[self._device]
        self._shape = _SHAPES[self._device]
        self._jobs: Iterator[Job] = draw_jobs(random.Random(args.seed), self._shape)
        self._outcomes: list[Outcome] = []
        self._meter = Meter()
        self._stop = False
        exact = ExactJudge(CONTEXT_TOKENS, VOCAB_SIZE)
        self._judge = Judge(ReferenceJudge(model) if self._device == "cpu" else exact, model)
        self._result = Result(
            self._device, args.seed, self._seconds, self._judge.method, busy_loops=args.nice_load
        )
        self._faults = _possible_faults(args)
        self._arena = Arena(
            target=target,
            clock=target.clock,
            rng=random.Random(args.seed + 1),
            shape=self._shape,
            next_job=lambda: next(self._jobs),
            send_many=self._send_many,
            meter=self._meter,
            garbage=self._result.garbage,
            injected=self._result.faults,
            unrecovered=self._result.unrecovered,
        )

    async def under_load(self) -> None:
        """Clients and faults, until the time is up and every request has its end."""
        clients = [asyncio.create_task(self._client(), name=f"client {n}") for n in range(self._num_clients)]
        try:
            await inject(self._arena, self._faults, time.monotonic() + self._seconds)
            self._stop = True
            await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self) -> None:
        while not self._stop and not self._target.has_ended:
            if await self._send(next(self._jobs)) == "refused":
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _send_many(self, jobs: list[Job]) -> None:
        await asyncio.gather(*map(self._send, jobs))

    async def _send(self, job: Job) -> Fate:
        target, is_greedy = self._target, self._shape.is_greedy
        outcome = Outcome(job, self._meter)
        await send(
            outcome,
            target.url,
            target.socket_path,
            _ANSWER_LIMIT_S,
            is_greedy=is_greedy,
            clock=target.clock,
        )
        self._note(outcome)
        return outcome.fate

    def _note(self, outcome: Outcome) -> None:
        result, job = self._result, outcome.job
        result.fates[outcome.fate] += 1
        if outcome.fate in ("refused", "failed"):
            result.codes[outcome.code] += 1
        if outcome.fate == "lost":
            result.lost.append(f"{job.request_id} over {job.transport}: {outcome.code}: {outcome.detail}")
        if self._device == "fake":
            self._look_at(outcome)
        else:
            self._outcomes.append(outcome)  # the reference has its turn when the daemon is at rest

    def _look_at(self, outcome: Outcome) -> None:
        if why := self._judge.why_changed(outcome):
            job = outcome.job
            self._result.changed.append(f"{job.request_id} over {job.transport}, {outcome.fate}: {why}")

    async def end(self) -> Result:
        """Leaks, the drain, and what is left."""
        result, target = self._result, self._target
        result.num_tokens = self._meter.num_tokens
        result.leaked_blocks = abs(await target.settled())
        if not target.has_ended:
            result.engine_deaths = int(await target.metric("semipd:engine_deaths_total"))
            result.worker_deaths = int(await target.metric("semipd:worker_deaths_total"))
            result.requests_resumed = int(await target.metric("semipd:requests_resumed_total"))
        result.machine_time = target.clock.share()
        result.exit_code = await target.stopped()
        result.left = await target.left()
        result.engine_failures = target.log_count("engine failed")
        result.tracebacks = target.log_count("Traceback (most recent call last)")
        for outcome in self._outcomes:
            self._look_at(outcome)
        if result.problems:
            print(f"the daemon's last words:\n{target.log_tail()}", file=sys.stderr)
        return result


if __name__ == "__main__":
    sys.exit(main())
