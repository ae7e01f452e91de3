"""Daemon and engine over their socketpair: dataclasses of core.messages to and from frames.

Both ends are always the same release (the daemon starts the engine), so positional encoding is safe.
"""

from collections.abc import Callable
from dataclasses import asdict, astuple
from typing import Any

from semipd.core.errors import ProtocolError
from semipd.core.events import Event
from semipd.core.messages import (
    Cancel,
    ExpectedStarts,
    Finished,
    GetPartition,
    GetStatus,
    Inbound,
    Outbound,
    PromptLogprobs,
    SetClass,
    SetPartition,
    SetSlo,
    Status,
    StepTokens,
    Submit,
)
from semipd.core.plan import TokenLogprobs
from semipd.core.request import Request, SeqId
from semipd.core.slo import Targets
from semipd.wire.packed_top import PackedTop
from semipd.wire.sampling import sampling_from_wire, sampling_to_wire

LINK_FRAME_BYTES = 64 * 2**20
"""The engine link carries whole prompts and log-probabilities: its frames may be larger than a client's."""


def request_to_wire(request: Request) -> dict[str, Any]:
    return {
        "seq": request.seq,
        "request_id": request.request_id,
        "prompt": request.prompt,
        "params": sampling_to_wire(request.params),
        "arrival_ns": request.arrival_ns,
        "namespace": request.namespace,
        "emitted": list(request.emitted),
        "service_class": request.service_class,
        "targets": astuple(request.targets),
        "accept_late": request.accept_late,
    }


def request_from_wire(data: dict[str, Any]) -> Request:
    return Request(
        seq=SeqId(data["seq"]),
        request_id=data["request_id"],
        prompt=data["prompt"],
        params=sampling_from_wire(data["params"]),
        arrival_ns=data["arrival_ns"],
        namespace=data["namespace"],
        emitted=tuple(data["emitted"]),
        service_class=data["service_class"],
        targets=Targets(*data["targets"]),
        accept_late=data["accept_late"],
    )


def inbound_to_wire(message: Inbound) -> dict[str, Any]:
    match message:
        case Submit(request):
            return {"op": "submit", "request": request_to_wire(request)}
        case Cancel(seq):
            return {"op": "cancel", "seq": seq}
        case GetStatus(nonce):
            return {"op": "get_status", "nonce": nonce}
        case GetPartition(nonce):
            return {"op": "get_partition", "nonce": nonce}
        case SetPartition():
            return {"op": "set_partition"} | {name: getattr(message, name) for name in SetPartition.__slots__}
        case SetSlo():
            return {"op": "set_slo"} | {name: getattr(message, name) for name in SetSlo.__slots__}
        case SetClass():
            return {"op": "set_class"} | asdict(message)


def inbound_from_wire(data: dict[str, Any]) -> Inbound:
    match data.get("op"):
        case "submit":
            return Submit(request_from_wire(data["request"]))
        case "cancel":
            return Cancel(SeqId(data["seq"]))
        case "get_status":
            return GetStatus(data["nonce"])
        case "get_partition":
            return GetPartition(data["nonce"])
        case "set_partition":
            return SetPartition(**_without_op(data))
        case "set_slo":
            return SetSlo(**_without_op(data))
        case "set_class":
            targets = {name: Targets(**data[name]) for name in ("before", "after")}
            return SetClass(**_without_op(data) | targets)
    raise ProtocolError("unknown_operation", f"The engine does not know the operation {data.get('op')!r}.")


def logprobs_from_wire(entry: list[Any]) -> TokenLogprobs:
    token_id, logprob, top, rank = entry
    return TokenLogprobs(token_id, logprob, tuple(map(tuple, top)), rank)


def _kept_logprobs(entry: list[Any] | None) -> TokenLogprobs | None:
    """The daemon may keep very many."""
    if entry is None:
        return None
    token_id, logprob, top, rank = entry
    return TokenLogprobs(token_id, logprob, PackedTop(top) if top else (), rank)


def outbound_to_wire(message: Outbound) -> dict[str, Any]:
    match message:
        case StepTokens(seqs, tokens, logprobs):
            return {"op": "tokens", "seqs": seqs, "tokens": tokens, "logprobs": logprobs}
        case PromptLogprobs(seq, entries):
            return {"op": "prompt_logprobs", "seq": seq, "entries": entries}
        case Finished():
            return {"op": "finished"} | {name: getattr(message, name) for name in Finished.__slots__}
        case ExpectedStarts(seqs, at_ns):
            return {"op": "expected_starts", "seqs": seqs, "at_ns": at_ns}
        case Event():
            return {"op": "event"} | {name: getattr(message, name) for name in Event.__slots__}
        case Status(nonce, data, refused):
            return {"op": "status", "nonce": nonce, "data": data, "refused": refused}


def _tokens(data: dict[str, Any]) -> StepTokens:
    logprobs = data["logprobs"]
    entries = None if logprobs is None else [_kept_logprobs(entry) for entry in logprobs]
    return StepTokens(tuple(data["seqs"]), data["tokens"], entries)


def _prompt_logprobs(data: dict[str, Any]) -> PromptLogprobs:
    entries = [entry for entry in map(_kept_logprobs, data["entries"]) if entry is not None]
    return PromptLogprobs(SeqId(data["seq"]), entries)


def _without_op(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "op"}


_OUTBOUND: dict[str, Callable[[dict[str, Any]], Outbound]] = {
    "tokens": _tokens,
    "prompt_logprobs": _prompt_logprobs,
    "finished": lambda data: Finished(**_without_op(data)),
    "expected_starts": lambda data: ExpectedStarts(tuple(data["seqs"]), tuple(data["at_ns"])),
    "event": lambda data: Event(**_without_op(data)),
    "status": lambda data: Status(data["nonce"], data["data"], data["refused"]),
}


def outbound_from_wire(data: dict[str, Any]) -> Outbound:
    decode = _OUTBOUND.get(data.get("op", ""))
    if decode is None:
        raise ProtocolError("unknown_operation", f"The daemon does not know the message {data.get('op')!r}.")
    return decode(data)
