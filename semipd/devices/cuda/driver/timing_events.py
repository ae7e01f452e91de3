"""Timed events, used again: creating one costs microseconds of a decode step."""

from semipd.devices.cuda.driver.interface import Driver, Event, Stream


class EventPool:
    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._free: list[Event] = []
        self._all: list[Event] = []

    def record(self, stream: Stream) -> Event:
        """An event for the stream's work so far."""
        if not self._free:
            event = self._driver.create_event(timing=True)
            self._all.append(event)
            self._free.append(event)
        event = self._free.pop()
        self._driver.record_event(event, stream)
        return event

    def give_back(self, event: Event) -> None:
        """Waits already enqueued keep what they wait for."""
        assert event not in self._free, f"event {event} is given back twice"
        self._free.append(event)

    def close(self) -> None:
        for event in self._all:
            self._driver.destroy_event(event)
        self._all.clear()
        self._free.clear()
