"""What no answer shows: a request that stays behind, an engine that died of a request."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from fuzzlib.talk import ANSWER_LIMIT_S, ViolationError

SETTLE_LIMIT_S = 10.0
"""A request that has been answered leaves the tables within that."""


class Watch:
    """Compares the daemon with what it was before: one fault is reported once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._live = self._deaths = 0
        self._live, self._deaths = self._settled(SETTLE_LIMIT_S)

    def problems(self, limit_s: float | None = None) -> list[str]:
        """After a request was answered, and with no other under way. Raises ViolationError when the daemon
        itself does not answer."""
        live, deaths = self._settled(SETTLE_LIMIT_S if limit_s is None else limit_s)
        new_live, new_deaths = live - self._live, deaths - self._deaths
        self._live, self._deaths = live, deaths
        died = [f"the engine died {new_deaths} time(s) of it"] if new_deaths > 0 else []
        return died + ([f"{new_live} request(s) stay behind after the answer"] if new_live > 0 else [])

    def _settled(self, limit_s: float) -> tuple[int, int]:
        """Requests that live or wait, and engine deaths, when an engine is ready and no more leave."""
        began_s = time.monotonic()
        while True:
            status = self._status()
            waited_s, is_ready = time.monotonic() - began_s, status["state"] == "ready"
            live = max(status["live_requests"], status["admission"]["waiting_requests"])
            is_settled = is_ready and live <= self._live
            if is_settled or waited_s > (limit_s if is_ready else ANSWER_LIMIT_S):
                return live, status["engine"]["restarts"]
            time.sleep(0.02)

    def _status(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self._url}/v1/status", timeout=ANSWER_LIMIT_S) as response:
                status: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            raise ViolationError(f"/v1/status answers {error.code}") from error
        return status
