"""What clients ask of the daemon: the fields of each question, and what its answer means."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from semipd.client.core import Answer, Question
from semipd.core.state.daemon import DrainState, Status
from semipd.core.state.partition import ChangeAnswer, PartitionDocument, SloAnswer
from semipd.core.state.requests import RequestRow
from semipd.wire.client_protocol import GenerateItem, StateFrame, given
from semipd.wire.client_results import Model, Tokens
from semipd.wire.load_frame import LoadFrame


def generate(
    prompt: str | list[int] | None = None,
    *,
    messages: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Question[GenerateItem]:
    """Start generating. `options` are the fields of the socket's generate request (max_tokens,
    temperature, seed, stop, ...). Errors are raised by the iteration."""
    fields = options | {"prompt": prompt, "messages": messages}
    return Question("generate", given(fields), GenerateItem.from_wire)


def subscribe(
    *,
    interval_ms: int = 1000,
    events: bool = False,
    after: str | None = None,
    kinds: Sequence[str] | None = None,
) -> Question[StateFrame]:
    """The daemon's state at this rate. `events`: also what happens, from the event `after` on, or from
    now on; `kinds`: only these. A slower consumer gets the newest state, and every event since.
    Errors are raised by the iteration."""
    chosen = None if kinds is None else list(kinds)
    fields = {"interval_ms": interval_ms, "events": events, "after": after, "kinds": chosen}
    return Question("subscribe", given(fields), StateFrame.from_wire)


def record() -> Question[LoadFrame]:
    """What comes from now on and how it ends, without texts and token ids: for capacity planning. Errors are
    raised by the iteration."""
    return Question("record", {}, LoadFrame.from_wire)


def cancel(target: int) -> Question[bool]:
    """End the generation with this id on this connection. False: it is over already."""
    return Question("cancel", {"target": target}, lambda answer: bool(answer["cancelled"]))


def unsubscribe(target: int) -> Question[bool]:
    return Question("unsubscribe", {"target": target}, lambda answer: bool(answer["unsubscribed"]))


def cancel_request(request_id: str) -> Question[str]:
    """End any request by its public id: `cancelled`, `already_finished` or `not_found`."""
    return Question("cancel", {"request_id": request_id}, lambda answer: str(answer["result"]))


def requests(
    *, state: str | None = None, limit: int | None = None, request_id: str | None = None
) -> Question[list[RequestRow]]:
    """Live and recent requests; with `request_id` that one only, and its events."""
    fields = given({"state": state, "limit": limit, "request_id": request_id})
    return Question("requests", fields, itemgetter("requests"))


def tokenize(
    prompt: str | None = None, *, messages: Sequence[Mapping[str, Any]] | None = None, **options: Any
) -> Question[Tokens]:
    """Of a text or a conversation. `options`: return_token_strs, add_special_tokens, and those of the
    chat template."""
    fields = options | {"prompt": prompt, "messages": messages}
    return Question("tokenize", given(fields), Tokens.from_wire)


def detokenize(tokens: Sequence[int]) -> Question[str]:
    """The text of these tokens."""
    return Question("detokenize", {"tokens": list(tokens)}, lambda answer: str(answer["prompt"]))


def models() -> Question[list[Model]]:
    """What is served here."""
    return Question("models", {}, lambda answer: [Model.from_wire(Answer(one)) for one in answer["models"]])


def status() -> Question[Status]:
    """Numbers of daemon and engine."""
    return Question("status", {}, itemgetter("status"))


def partition() -> Question[PartitionDocument]:
    """Partition control: mode, split, possible splits, history, decisions."""
    return Question("partition.get", {}, itemgetter("partition"))


def set_partition(**fields: Any) -> Question[ChangeAnswer]:
    """`fields`: mode, prefill_units or decode_units, expires_s, actor, reason, dry_run. Raises SemipdError
    when partition control refuses it."""
    return Question("partition.set", fields, itemgetter("partition"))


def clear_partition(**fields: Any) -> Question[ChangeAnswer]:
    """Back to auto. `fields`: actor, reason."""
    return Question("partition.clear", fields, itemgetter("partition"))


def slo() -> Question[SloAnswer]:
    """Targets, and what was observed."""
    return Question("slo.get", {}, itemgetter("slo"))


def set_slo(**fields: Any) -> Question[SloAnswer]:
    """`fields`: ttft_ms, tpot_ms, percentile, window_s (those to change), actor, reason."""
    return Question("slo.set", fields, itemgetter("slo"))


def drain(*, cancel: bool = False, **fields: Any) -> Question[DrainState]:
    """Refuse new requests and let those under way finish; or, with `cancel`, serve again. `fields`:
    limit_s, actor, reason. Returns at once, with what is awaited."""
    return Question("drain", given({"cancel": cancel, **fields}), itemgetter("drain"))


def shutdown(**fields: Any) -> Question[DrainState]:
    """Ask the daemon to stop when the requests under way have finished; returns when it has agreed, with
    what is awaited. `fields`: limit_s, actor, reason."""
    return Question("shutdown", given(fields), itemgetter("drain"))
