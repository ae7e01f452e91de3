"""Command lines, environments and terminals for our four commands, from a seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fuzzlib.command_words import (
    ENVIRONMENT,
    FILES,
    FORMATS,
    MISTYPED,
    NUMBERS,
    SAMPLING,
    SETS,
    SIZES,
    TEXTS,
    TIMES,
)

Command = Literal["daemon", "client", "plan", "top"]
Stream = Literal["pipe", "closed", "full", "null", "left", "terminal"]

GOOD = "daemon"
"""The place at which the good daemon listens."""


@dataclass(frozen=True)
class Case:
    """One process. `place`: what listens where --socket points to. `environ`: changes; None unsets.
    `signal_s`: when SIGINT or SIGTERM is sent; None: never."""

    command: Command
    arguments: tuple[str, ...]
    place: str
    environ: Mapping[str, str | None]
    stdin: Stream
    stdout: Stream
    stderr: Stream
    typed: bytes
    size: tuple[int, int]
    signal_s: float | None
    is_interrupt: bool


def make_case(seed: int, idx: int, places: Mapping[str, str], files: Mapping[str, str]) -> Case:
    return _Maker(random.Random(f"{seed}/{idx}"), places, files).case()


class _Maker:
    def __init__(self, rng: random.Random, places: Mapping[str, str], files: Mapping[str, str]) -> None:
        self._rng, self._places, self._files = rng, places, files

    def case(self) -> Case:
        rng = self._rng
        command: Command = rng.choice(("daemon", "daemon", "client", "client", "plan", "top", "top"))
        place = rng.choice([GOOD] * len(self._places) + sorted(self._places))
        made = {"daemon": self._daemon, "client": self._client, "plan": self._plan, "top": self._top}
        arguments, is_endless = made[command](place)
        if self._chance(0.08):
            arguments.insert(rng.randrange(len(arguments) + 1), rng.choice(MISTYPED))
        stdin, stdout, stderr = self._streams()
        is_signalled = is_endless or self._chance(0.12)
        return Case(
            command,
            tuple(arguments),
            place,
            self._environ(changes_something=bool({"stop", "drain", "partition", "slo"} & set(arguments))),
            stdin,
            stdout,
            stderr,
            self._typed(),
            rng.choice(SIZES),
            rng.choice((0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)) * rng.uniform(0.5, 2)
            if is_signalled
            else None,
            self._chance(0.7),
        )

    def _chance(self, frac: float) -> bool:
        return self._rng.random() < frac

    def _streams(self) -> tuple[Stream, Stream, Stream]:
        rng = self._rng
        if self._chance(0.25):
            return "terminal", "terminal", "terminal"
        stdin: Stream = rng.choice(("pipe", "pipe", "pipe", "null", "closed", "terminal"))
        stdout: Stream = rng.choice(("pipe", "pipe", "pipe", "full", "closed", "left", "terminal"))
        stderr: Stream = rng.choice(("pipe", "pipe", "pipe", "pipe", "full", "closed", "terminal"))
        return stdin, stdout, stderr

    def _environ(self, changes_something: bool) -> dict[str, str | None]:
        """Whoever changes something must not find a daemon of somebody else at the default socket."""
        rng = self._rng
        names = rng.sample(sorted(ENVIRONMENT), rng.choice((0, 0, 1, 1, 2, 4, 8)))
        made = {name: rng.choice(ENVIRONMENT[name]) for name in names}
        if changes_something:
            made.pop("XDG_RUNTIME_DIR", None)
        return made

    def _typed(self) -> bytes:
        return self._rng.choice(
            (
                b"",
                b"hello\n",
                b"\xff\xfe\n",
                "Ω日本\n".encode(),
                "ñ\n".encode("latin-1"),
                b"\x00",
                b"a" * 300_000,
                b"one\n\xff\ntwo\n\x04",
            )
        )

    def _where(self, place: str) -> list[str]:
        """The good daemon is always named: without a name, it would be whatever runs on this machine."""
        return ["--socket", self._places[place]] if place == GOOD or self._chance(0.9) else []

    def _options(self, *choices: tuple[str, Sequence[str]], most: int = 3) -> list[str]:
        rng, made = self._rng, list[str]()
        for flag, values in rng.sample(choices, min(rng.randrange(most + 1), len(choices))):
            value = [rng.choice(values)] if values else []
            made += [f"{flag}={value[0]}"] if value and self._chance(0.3) else [flag, *value]
        return made

    def _file(self) -> str:
        name = self._rng.choice(FILES)
        return self._files.get(name, name)

    def _own_file(self) -> str:
        """For what writes: never one of the system's, which a fault could cost."""
        return self._rng.choice(sorted(self._files.values()))

    def _client(self, place: str) -> tuple[list[str], bool]:
        rng = self._rng
        verb = rng.choice(
            ("generate", "generate", "chat", "status", "watch", "completion", "--help", "--version")
        )
        sampling = [(flag, NUMBERS) for flag in SAMPLING]
        more = [("--stop", TEXTS), ("--timing", ()), ("--json", ()), ("--ignore-eos", ())]
        if verb == "generate":
            words = [rng.choice((*TEXTS, "-", "-", "-")), *self._options(*sampling, *more, ("--chat", ()))]
            return [verb, *self._where(place), *words, *self._limit(words)], False
        if verb == "chat":
            words = self._options(*sampling, *more, ("--system", TEXTS))
            return [verb, *self._where(place), *words, *self._limit(words)], False
        if verb == "watch":
            words = self._options(("--interval", (*NUMBERS, "0.1", "0.1")), ("--events", ()), ("--json", ()))
            is_counted = self._chance(0.7)
            count = ["--count", rng.choice((*NUMBERS[:4], "1", "2"))] if is_counted else []
            return [verb, *self._where(place), *words, *count], True
        if verb == "completion":
            return [verb, rng.choice(("bash", "zsh", "tcsh", "fish", "csh", ""))], False
        return [verb, *(self._where(place) if verb == "status" else [])], False

    def _limit(self, words: Sequence[str]) -> list[str]:
        """Without it an answer may be long, which is no fault."""
        return [] if any(word.startswith("--max-tokens") for word in words) else ["--max-tokens", "4"]

    def _top(self, place: str) -> tuple[list[str], bool]:
        rng = self._rng
        what = self._where(place) if self._chance(0.6) else [rng.choice(("--demo", "--replay")), self._file()]
        if "--demo" in what:
            what = ["--demo"]
        mode = rng.choice(
            (
                ["--once"],
                ["--once"],
                ["--json", "--count", "2"],
                ["--json", "--once"],
                ["--json"],
                [],
                [],
                ["--help"],
            )
        )
        more = self._options(
            ("--interval", (*NUMBERS, "0.25", "0.25")),
            ("--speed", NUMBERS),
            ("--theme", ("nord", "no-such", "", "\udcff")),
            ("--read-only", ()),
            ("--record", (self._own_file(),)),
            ("--completion", ("bash", "zsh", "x")),
            most=2,
        )
        return [*what, *mode, *more], True

    def _plan(self, _place: str) -> tuple[list[str], bool]:
        """No file is a trace that is long enough: it must fail."""
        rng = self._rng
        names = ("h200", "h100", "x", "", "\u202e")
        options = self._options(
            ("--format", ("azure", "mooncake", "recorded", "sharegpt", "x")),
            ("--rate", NUMBERS),
            ("--slo", ("500/25", "500/25/50", "1/", *NUMBERS)),
            ("--attainment", NUMBERS),
            ("--gpus", ("1..4", "4..1", "..", *NUMBERS)),
            ("--policies", ("predictive", "chunked", "fixed:64+cost", "x", "")),
            ("--profile", (self._file(),)),
            ("--json", (self._own_file(), "-")),
            ("--png", (self._own_file(),)),
            ("--completion", ("bash", "zsh", "csh")),
            most=5,
        )
        needed = ["--trace", self._file(), "--gpu", rng.choice(names), "--model", "llama-3-8b"]
        return [*needed, *options], False

    def _daemon(self, place: str) -> tuple[list[str], bool]:
        rng = self._rng
        common = [("--config", (self._file(),)), ("--set", SETS)]
        flags = [
            (flag, (*TEXTS, *NUMBERS)) for flag in ("--model", "--device", "--dtype", "--host", "--port")
        ]
        verb = rng.choice(
            (
                "status",
                "status",
                "config",
                "config",
                "start",
                "stop",
                "drain",
                "partition",
                "slo",
                "record",
                "completion",
                "--help",
                "--version",
            )
        )
        if verb == "completion":
            return [verb, rng.choice(("bash", "zsh", "tcsh", "fish", "csh", ""))], False
        if verb.startswith("-"):
            return [verb], False
        if verb == "config":
            return [
                verb,
                *self._options(*common, *flags, ("--explain", ()), ("--log-format", FORMATS)),
            ], False
        if verb == "start":
            # it must fail: what starts well is the business of other tests
            more = self._options(
                *common, ("--detach", ()), ("--pid-file", (self._own_file(),)), ("--report-fd", NUMBERS)
            )
            return [verb, "--model", "/nonexistent/model", "--socket", self._places["missing"], *more], False
        where = self._where(place)
        if verb == "record":
            return self._record(where), True
        if verb == "status":
            return [verb, *where, *self._options(*common, ("--json", ()))], False
        if verb == "slo":
            return [
                verb,
                *where,
                *self._options(("--ttft-ms", NUMBERS), ("--json", ()), ("--reason", TEXTS)),
            ], False
        if verb == "partition":
            return self._partition(where), False
        if place == GOOD:  # it is still needed
            return ["drain", *where, "--undo", *self._options(("--reason", TEXTS), ("--wait", ()))], False
        words = self._options(("--within", TIMES), ("--reason", TEXTS), *common)
        return [
            verb,
            *where,
            *words,
            *self._options(("--now", ()) if verb == "stop" else ("--wait", ())),
        ], False

    def _record(self, where: Sequence[str]) -> list[str]:
        file = self._rng.choice((self._own_file(), f"{self._own_file()}.new", "-", "-"))
        return ["record", file, *where, *self._options(("--for", TIMES), ("--max-size", NUMBERS))]

    def _partition(self, where: Sequence[str]) -> list[str]:
        action = self._rng.choice(("show", "set", "off", "auto", "shwo"))
        more = self._options(("--reason", TEXTS), ("--json", ()))
        if action == "set":
            more += ["--prefill", self._rng.choice(NUMBERS), "--dry-run", *self._options(("--for", TIMES))]
        return ["partition", action, *where, *more]
