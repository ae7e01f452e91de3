"""What was made on the device, destroyed in reverse order, with every error gathered."""

from collections.abc import Callable, Sequence

from semipd.core.errors import SemipdError
from semipd.devices.cuda.driver.interface import Driver, Event, GreenContext, SmResource, Stream


class Owned:
    """Contexts, streams and events of one owner."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._undo: list[tuple[str, Callable[[], None]]] = []

    def green_context(self, resources: Sequence[SmResource]) -> GreenContext:
        context = self._driver.create_green_context(resources)
        self._undo.append(("green context", lambda: self._driver.destroy_green_context(context)))
        return context

    def stream(self, priority: int, context: GreenContext | None) -> Stream:
        stream = self._driver.create_stream(priority, context)
        self._undo.append(("stream", lambda: self._driver.destroy_stream(stream)))
        self._undo.append(("work of a stream", lambda: self._driver.synchronize_stream(stream)))
        return stream

    def event(self) -> Event:
        event = self._driver.create_event()
        self._undo.append(("event", lambda: self._driver.destroy_event(event)))
        return event

    def close(self) -> None:
        """Wait for each stream, then destroy it and what it stands on. Idempotent.

        Raises SemipdError(`cuda_release_failed`) with every error, after trying everything.
        """
        failed: list[str] = []
        tried = len(self._undo)
        while self._undo:
            what, undo = self._undo.pop()
            try:
                undo()
            except SemipdError as error:
                failed.append(f"{what}: {error.message}")
        if failed:
            message = f"{len(failed)} of {tried} steps of giving the GPU back failed. {' '.join(failed)}"
            raise SemipdError(
                "cuda_release_failed", message, "The driver frees the rest when the process ends."
            )
