"""The demo's clients: their requests go in where a server hands them in, and they read what comes of them."""

import random
from collections import deque

from semipd.core.errors import SemipdError
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.daemon.access.callers import Caller
from semipd.daemon.access.classes import Service
from semipd.daemon.requests.live import LiveRequest
from semipd.daemon.requests.rules import RequestRules
from semipd.daemon.state.daemon_state import DaemonState
from semipd.sim.demo.load import Draft
from semipd.sim.demo.timeline import Timeline

FIRST_TOKENS = {"chat": 11, "documents": 12, "reports": 13}
"""What prompts of a sort begin with."""

NUM_CONVERSATIONS = 32
"""Of the latest, which others go on with."""

_DIGIT, _FILLER = 1000, 7


class Clients:
    """All who have sent something and still wait for some of the answer."""

    def __init__(
        self, state: DaemonState, rules: RequestRules, timeline: Timeline, rng: random.Random
    ) -> None:
        self._state = state
        self._rules = rules
        self._timeline = timeline
        self._rng = rng
        self._readers: dict[SeqId, _Reader] = {}
        self._conversations: deque[list[int]] = deque(maxlen=NUM_CONVERSATIONS)
        self._num_sent = 0

    def send(self, draft: Draft) -> None:
        """It is admitted, or refused as a server would."""
        request_id = f"{self._rng.getrandbits(128):032x}"
        arrival_ns = self._timeline.now_ns
        try:
            live = self._admit(draft, request_id, arrival_ns)
        except SemipdError as error:
            self._state.history.answered_with_error(error.code, request_id, arrival_ns, draft.service_class)
            return
        reader = self._readers[live.request.seq] = _Reader(live, draft, self._state)
        if draft.patience_s < 600.0:
            self._timeline.after(draft.patience_s, lambda: self._hang_up(reader))

    def read(self) -> None:
        """What is new, each whatever came for them."""
        for reader in [reader for reader in self._readers.values() if reader.live.news.is_set()]:
            reader.read()
            if reader.is_done:
                del self._readers[reader.live.request.seq]

    def _admit(self, draft: Draft, request_id: str, arrival_ns: int) -> LiveRequest:
        prompt = self._prompt(draft)
        caller = Caller(draft.key or "")
        params = SamplingParams(max_tokens=draft.max_tokens, seed=self._rng.getrandbits(32))
        namespace = self._rules.namespace(caller, None)
        name = draft.service_class
        service = Service(name, self._state.classes.targets(name))
        terms = self._rules.terms(caller, service, params)
        with self._state.enter(service, 1, len(prompt)) as reservation:
            live = self._state.table.admit(request_id, prompt, params, namespace, arrival_ns, terms=terms)
            reservation.hand_over(len(prompt))
        return live

    def _prompt(self, draft: Draft) -> list[int]:
        """Equal beginnings are equal prefixes; behind them stands the request's own number."""
        self._num_sent += 1
        begun = [FIRST_TOKENS[draft.sort]] * draft.shared_tokens
        if draft.follows_up and self._conversations:
            begun = self._rng.choice(self._conversations)[: draft.shared_tokens]
        own = [*divmod(self._num_sent, _DIGIT)]
        prompt = (begun + own + [_FILLER] * draft.prompt_tokens)[: draft.prompt_tokens]
        if draft.sort == "chat":
            self._conversations.append(prompt)
        return prompt

    def _hang_up(self, reader: "_Reader") -> None:
        if self._readers.pop(reader.live.request.seq, None) is not None:
            self._state.table.release(reader.live)


class _Reader:
    """Takes one request's tokens as they come; one that reads nothing more takes the rest of a whole answer.
    What the model had to say ends as by a stop string."""

    def __init__(self, live: LiveRequest, draft: Draft, state: DaemonState) -> None:
        self.live = live
        self.is_done = False
        self._draft = draft
        self._state = state

    def read(self) -> None:
        live, table = self.live, self._state.table
        live.news.clear()
        if len(live.tokens) >= self._draft.output_tokens:
            table.cancel(live, "stop")
        if not live.is_blocked or live.finish_reason in ("stop", "length"):
            self._take()
        if live.is_over:
            table.release(live)
            self.is_done = True

    def _take(self) -> None:
        live = self.live
        num_new = len(live.tokens) - live.num_read
        if num_new:
            live.num_read += num_new
            self._state.history.sent(live.record, num_new, has_text=True)
        live.is_blocked = live.num_read > self._draft.read_tokens
