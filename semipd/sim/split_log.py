"""Which splits held, and for how long, read from the coordinator's events."""

from dataclasses import dataclass, field

from semipd.core.events import SPLIT_CHANGED, Event
from semipd.core.split import Split


@dataclass(slots=True)
class SplitLog:
    """`held_s`: virtual seconds per split, up to the last change. `num_shared_changes`: how often the split
    with both lanes became another one; lending in between does not count."""

    held_s: dict[str, float] = field(default_factory=dict)
    num_shared_changes: int = 0
    _current: Split | None = None
    _shared: Split | None = None
    _since_ns: int = 0

    def note(self, event: Event) -> None:
        if event.kind != "split_changed":
            return
        target = SPLIT_CHANGED.of(event)["to"]
        assert isinstance(target, (list, tuple)), f"split_changed to {target!r}"
        split = Split(*target)
        if self._current is not None:
            held_s = (event.at_ns - self._since_ns) / 1e9
            self.held_s[str(self._current)] = self.held_s.get(str(self._current), 0.0) + held_s
        if not split.is_solo:
            self.num_shared_changes += self._shared not in (None, split)
            self._shared = split
        self._current, self._since_ns = split, event.at_ns
