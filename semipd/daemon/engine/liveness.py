"""Whether an engine that runs also moves. Pure: told once a turn what is known, says when to give up."""

from semipd.core.state.engine import EngineStatus
from semipd.system.patience import GrantedTime
from semipd.system.process_usage import NOTHING, ProcessUsage

_ANY_LANE = "any lane"


class Watch:
    """Two questions: does the coordinator's loop answer, and does every step that was begun come to its end?

    It counts its own turns, each at most twice as long as it should be and without the time that the machine
    gave to others while the engine was ready to run, and compares counters instead of times. So neither a
    daemon or a machine that was stopped for an hour nor one that is crowded accuses its engine.
    """

    def __init__(self, interval_s: float, answer_limit_s: float, step_limit_s: float) -> None:
        self._longest_turn_s = 2 * interval_s
        self._answer_limit_s = answer_limit_s
        self._step_limit_s = step_limit_s
        self._silent = GrantedTime()
        self._standing: dict[str, GrantedTime] = {}
        self._steps: dict[str, int] = {}

    def turned(
        self, elapsed_s: float, status: EngineStatus | None, used: ProcessUsage = NOTHING
    ) -> str | None:
        """A turn of `elapsed_s` is over. `status`: the engine's answer, None while there is none. `used`: by
        the engine's processes in this turn. Returns why the engine must be taken for hung, or None."""
        elapsed_s = min(elapsed_s, self._longest_turn_s)
        if status is None:
            self._silent.passed(elapsed_s, used)
            if self._silent.seconds < self._answer_limit_s:
                return None
            return f"its loop did not answer within supervision.answer_limit_s={self._answer_limit_s:g} s"
        self._silent = GrantedTime()
        return self._look(elapsed_s, used, status)

    def _look(self, elapsed_s: float, used: ProcessUsage, status: EngineStatus) -> str | None:
        lanes = status["lanes"]
        steps: dict[str, int] = {name: lane["steps"] for name, lane in lanes.items()}
        in_flight: dict[str, int] = {name: lane["steps_in_flight"] for name, lane in lanes.items()}
        requests = status["requests"]
        has_work = requests["waiting"] + requests["prefilling"] + requests["decoding"] > 0
        steps[_ANY_LANE] = sum(steps.values())
        in_flight[_ANY_LANE] = int(has_work)
        for name, count in steps.items():
            if in_flight[name] > 0 and count == self._steps.get(name):
                self._standing.setdefault(name, GrantedTime()).passed(elapsed_s, used)
            else:
                self._standing.pop(name, None)
        self._steps = steps
        return self._why_hung()

    def _why_hung(self) -> str | None:
        longest = max(self._standing.items(), key=lambda item: item[1].seconds, default=None)
        if longest is None or longest[1].seconds < self._step_limit_s:
            return None
        name = longest[0]
        return (
            f"{name} had work and finished no step within supervision.step_limit_s={self._step_limit_s:g} s"
        )
