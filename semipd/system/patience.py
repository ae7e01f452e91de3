"""How long to wait for a process on a machine that may be slow or busy. Pure: told what time passed and what
the process used meanwhile."""

from semipd.system.process_usage import ProcessUsage

LOOK_EVERY_S = 0.5
"""Whoever waits should look so often. A look counts twice as long at most: who was stopped himself accuses
nobody when he wakes up."""

BUSY_FACTOR = 10
LONGEST_FACTOR = 60
"""A start that is at work may use so many times its limit of CPU time, and take so many times its limit."""

LEAST_SHARE = 0.05
"""So much of the time that passes counts, however busy the machine is."""

_PROGRESS_CPU_S = 0.05
_PROGRESS_BYTES = 2**16
"""Less than this is no sign of work: timers and threads that watch something use a little."""


class GrantedTime:
    """The time that passes, without that in which a process was ready to run while the machine served others.
    The kernel tells of a wait for a core when it is over, so sums are compared."""

    def __init__(self) -> None:
        self._passed_s = 0.0
        self._withheld_s = 0.0

    def passed(self, elapsed_s: float, used: ProcessUsage) -> None:
        """`used` meanwhile."""
        self._passed_s += elapsed_s
        self._withheld_s = min(self._withheld_s + used.withheld_s, self._passed_s)

    @property
    def seconds(self) -> float:
        return max(self._passed_s - self._withheld_s, LEAST_SHARE * self._passed_s)


class StartPatience:
    """For a start-up phase, which ends when it *stands*: no CPU time and no bytes for `limit_s`, though the
    machine had a core for it. One that is at work may go on for `BUSY_FACTOR` limits of CPU time and
    `LONGEST_FACTOR` limits in all."""

    def __init__(self, limit_s: float, usage: ProcessUsage) -> None:
        """`usage`: before the phase."""
        self.limit_s = limit_s
        self._standing = GrantedTime()
        self._waited_s = 0.0
        self._busy_s = 0.0
        self._began = self._moved = self._seen = usage

    @property
    def look_every_s(self) -> float:
        return min(LOOK_EVERY_S, self.limit_s / 4)

    @property
    def standing_s(self) -> float:
        return self._standing.seconds

    def looked(self, elapsed_s: float, usage: ProcessUsage) -> str | None:
        """A wait of `elapsed_s` is over, and all that was used so far is `usage`. Why the wait should end, or
        None. The reason completes "did not finish ..."."""
        elapsed_s = min(elapsed_s, 2 * self.look_every_s)
        self._waited_s += elapsed_s
        used, self._seen = usage.since(self._seen), usage
        self._busy_s += min(elapsed_s, used.cpu_s)
        moved = usage.since(self._moved)
        if moved.cpu_s >= _PROGRESS_CPU_S or moved.read_bytes >= _PROGRESS_BYTES:
            self._standing, self._moved = GrantedTime(), usage
        else:
            self._standing.passed(elapsed_s, used)
        return self._why()

    def _why(self) -> str | None:
        if self.standing_s >= self.limit_s:
            return f"within {self.limit_s:g} s"
        if self._busy_s >= BUSY_FACTOR * self.limit_s:
            return f"within {BUSY_FACTOR * self.limit_s:g} s of CPU time"
        if self._waited_s >= LONGEST_FACTOR * self.limit_s:
            return f"within {LONGEST_FACTOR * self.limit_s:g} s"
        return None

    def account(self) -> str:
        """What was seen, for people."""
        used = self._seen.since(self._began)
        return (
            f"in {self._waited_s:.1f} s it used {used.cpu_s:.1f} s of CPU time, read "
            f"{used.read_bytes / 2**20:.1f} MiB and waited {used.withheld_s:.1f} s for a core; "
            f"it has stood still for {self.standing_s:.1f} s"
        )


class StepClock:
    """For work that takes a known time on a machine of one's own: only what the machine grants counts."""

    def __init__(self, limit_s: float, usage: ProcessUsage) -> None:
        """`usage`: before the work; of it only the waiting for a core counts."""
        self._limit_s = limit_s
        self._granted = GrantedTime()
        self._seen = usage

    @property
    def look_every_s(self) -> float:
        return min(LOOK_EVERY_S, self._limit_s / 4)

    def looked(self, elapsed_s: float, usage: ProcessUsage) -> str | None:
        """As StartPatience.looked. The reason completes "did not finish ..."."""
        self._granted.passed(min(elapsed_s, 2 * self.look_every_s), usage.since(self._seen))
        self._seen = usage
        return f"within {self._limit_s:g} s" if self._granted.seconds >= self._limit_s else None
