"""What is sent: requests that are almost right, and bytes that are nothing at all. Hypothesis strategies."""

import json
from typing import Any

from hypothesis import strategies as st

from semipd.core.errors import SemipdError
from semipd.daemon.servers.socket_operations import TABLE
from semipd.wire.client_protocol import hello
from semipd.wire.frames import HEADER, encode_frame

MAX_TOKENS = 6

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
_anything = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_token_ids = st.lists(st.integers(-2, 520), max_size=30)
_texts = st.text(max_size=60)
_stops = st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=6)

_SAMPLING: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(-1, MAX_TOKENS),
    "temperature": st.floats(-1, 3),
    "top_p": st.floats(-0.5, 1.5),
    "top_k": st.integers(-2, 600),
    "min_p": st.floats(-0.5, 1.5),
    "repetition_penalty": st.floats(-1, 3),
    "presence_penalty": st.floats(-3, 3),
    "frequency_penalty": st.floats(-3, 3),
    "logit_bias": st.dictionaries(st.text("0123456789-x", max_size=4), st.floats(-200, 200), max_size=3),
    "seed": st.integers(-(2**65), 2**65),
    "min_tokens": st.integers(-1, 9),
    "ignore_eos": st.booleans(),
    "stop": _stops,
    "stop_token_ids": _token_ids,
    "allowed_token_ids": _token_ids,
    "include_stop_str_in_output": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "add_special_tokens": st.booleans(),
    "cache_salt": st.text(max_size=4),
    "priority": st.sampled_from(["interactive", "batch", 0, 1, "", None]),
    "timeout_ms": st.sampled_from([0, 1, 5, 60_000, 2**31, -1]),
    "include_timing": st.booleans(),
}
_ANSWER: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["fuzz", "other", "", None]),
    "n": st.integers(-1, 4),
    "max_completion_tokens": st.integers(-1, MAX_TOKENS),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {}, optional={"include_usage": st.booleans(), "continuous_usage_stats": st.booleans(), "x": _scalars}
    ),
    "truncate_prompt_tokens": st.integers(-2, 40),
    "truncation_side": st.sampled_from(["left", "right", "x"]),
    "reasoning_effort": st.sampled_from(["none", "high", "x"]),
    "prompt_logprobs": st.integers(-1, 22),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "user": st.text(max_size=4),
}
_contents = _texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _texts}), max_size=3)
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"])},
        optional={"content": _contents | _anything, "name": _scalars, "tool_call_id": _scalars},
    ),
    max_size=4,
)
_TEMPLATE: dict[str, st.SearchStrategy[Any]] = {
    "add_generation_prompt": st.booleans(),
    "continue_final_message": st.booleans(),
    "chat_template_kwargs": st.dictionaries(st.text(max_size=6), _scalars, max_size=3),
}
_ACT: dict[str, st.SearchStrategy[Any]] = {"actor": st.text(max_size=210), "reason": st.text(max_size=210)}
_SLO = {name: st.floats(-1, 1e6) for name in ("ttft_ms", "tpot_ms", "percentile", "window_s")}
_SPLIT: dict[str, st.SearchStrategy[Any]] = {
    "mode": st.sampled_from(["auto", "fixed", "off", "x"]),
    "prefill_units": st.integers(-1, 20),
    "decode_units": st.integers(-1, 20),
    "expires_s": st.floats(-1, 10),
    "dry_run": st.booleans(),
}
_prompts = _texts | _token_ids | st.lists(_texts, max_size=3) | st.lists(_token_ids, max_size=3)


def _object(
    required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    """Now and then a field holds anything, a required one is missing, or there is one that nobody knows."""
    likely = st.fixed_dictionaries(required, optional=optional)
    names = st.sampled_from([*required, *optional, "zzz"])
    spoiled = st.tuples(likely, names, _anything).map(lambda made: {**made[0], made[1]: made[2]})
    dropped = st.tuples(likely, names).map(lambda made: {k: v for k, v in made[0].items() if k != made[1]})
    return likely | spoiled | dropped


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    """Without a limit, or with an absurd one, a valid request would keep the engine busy for long."""
    if "max_tokens" not in body and "max_completion_tokens" not in body:
        body["max_tokens"] = MAX_TOKENS
    return body


_completion = _object(
    {"prompt": _prompts},
    _SAMPLING
    | _ANSWER
    | {"echo": st.booleans(), "logprobs": st.integers(-1, 22), "best_of": st.integers(0, 3)},
).map(_bounded)
_chat = _object(
    {"messages": _messages},
    _SAMPLING | _ANSWER | _TEMPLATE | {"logprobs": st.booleans(), "top_logprobs": st.integers(-1, 22)},
).map(_bounded)

BODIES: dict[tuple[str, str], st.SearchStrategy[dict[str, Any]]] = {
    ("POST", "/v1/completions"): _completion,
    ("POST", "/v1/chat/completions"): _chat,
    ("POST", "/tokenize"): _object({}, {"prompt": _texts, "messages": _messages, **_TEMPLATE}),
    ("POST", "/detokenize"): _object({"tokens": _token_ids}, {}),
    ("PUT", "/v1/partition"): _object({}, _SPLIT | _ACT),
    ("DELETE", "/v1/partition"): _object({}, _ACT),
    ("PATCH", "/v1/slo"): _object({}, _SLO | _ACT),
    ("POST", "/v1/drain"): _object({}, {"limit_s": st.floats(-1, 2), **_ACT}),
    ("DELETE", "/v1/drain"): _object({}, _ACT),
}


@st.composite
def http_bodies(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """Method, path, body: well-formed JSON."""
    method, path = draw(st.sampled_from(sorted(BODIES)))
    return method, path, json.dumps(draw(BODIES[method, path])).encode()


_PIECES = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"1e999", b"-0", b"NaN", b"\xff", b"\x00", b"\\ud800",
    b'"prompt"', b'"max_tokens"', b'"stream"', b"true", b'"a"', b"1", b" ", b"\xef\xbb\xbf",
]  # fmt: skip
_broken_json = (
    st.lists(st.sampled_from(_PIECES), max_size=30).map(b"".join)
    | st.binary(max_size=200)
    | st.integers(1, 3000).map(lambda depth: b'{"prompt":' + b"[" * depth + b"]" * depth + b"}")
    | st.integers(1, 3000).map(lambda digits: b'{"prompt":"a","max_tokens":' + b"9" * digits + b"}")
)


@st.composite
def broken_bodies(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """Bodies that are no JSON, or no JSON that anybody would send."""
    method, path = draw(st.sampled_from(sorted(BODIES)))
    whole = draw(http_bodies())[2]
    cut = st.integers(0, max(len(whole) - 1, 0)).map(lambda end: whole[:end])
    return method, path, draw(_broken_json | cut)


_PATHS = [
    "/", "/health", "/ready", "/metrics", "/openapi.json", "/v1/models", "/v1/models/fuzz", "/v1/status",
    "/v1/requests", "/v1/requests/x", "/v1/requests?state=live&limit=3", "/v1/requests?limit=x",
    "/v1/partition", "/v1/slo", "/v1/drain", "/v1/completions", "/v1/chat/completions", "/tokenize",
    "/v1/requests?limit=000000001" + "9" * 5000, "/v1/events?after=1-" + "9" * 5000,
    "/v1/events?after=" + "9" * 5000 + "-1", "//v1//models", "/v1/requests/%00", "/v1/requests/%2e%2e",
    "/v1/models/%ff", "/../etc/passwd",
]  # fmt: skip
_header_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
_header_values = (
    _header_text
    | st.binary(max_size=30).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"").decode("latin-1"))
    | st.integers(1, 20_000).map(lambda size: "x" * size)
)
_HEADERS: dict[str, st.SearchStrategy[str]] = {
    "Host": st.sampled_from(["localhost", "evil.example", "", "localhost:1", "[::1]:9"]) | _header_text,
    "Content-Type": st.sampled_from(
        ["application/json", "text/plain", "application/json; charset=utf-16", ""]
    ),
    "Authorization": _header_values,
    "X-Request-ID": _header_values,
    "Accept": _header_values,
    "Accept-Encoding": _header_text,
    "Content-Encoding": st.sampled_from(["gzip", "deflate", "br", "identity", "x"]),
    "Transfer-Encoding": st.sampled_from(["chunked", "gzip", "identity", "chunked, chunked"]),
    "Content-Length": st.sampled_from(["-1", "0x10", "0", "99999999999", "1, 1", ""]),
    "Expect": st.sampled_from(["100-continue", "x"]),
    "Connection": st.sampled_from(["close", "keep-alive", "Upgrade", "x"]),
    "Upgrade": st.sampled_from(["websocket", "h2c"]),
    "Last-Event-ID": _header_values,
    "Range": _header_text,
    "Cookie": _header_values,
}
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "X"]


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    """Whole HTTP requests, head and body, as bytes. Nothing after them will be sent."""
    method = draw(st.sampled_from(_METHODS) | st.sampled_from(["GET", "POST"]))
    path = draw(st.sampled_from(_PATHS) | _header_text.map(lambda text: "/" + text))
    body = draw(st.just(b"") | st.binary(max_size=60) | http_bodies().map(lambda made: made[2]))
    names = draw(st.lists(st.sampled_from(sorted(_HEADERS)), max_size=6))
    lines = [f"{name}: {draw(_HEADERS[name])}" for name in names]
    if draw(st.booleans()):
        lines += ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    version = draw(st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/9", ""]))
    head = "\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode("latin-1", "replace")
    return draw(
        st.just(head + body) | st.integers(0, len(head)).map(lambda end: head[:end]) | st.binary(max_size=80)
    )


_GENERATE = {
    **_SAMPLING,
    **_TEMPLATE,
    "prompt": _texts | _token_ids,
    "messages": _messages,
    "request_id": _header_text,
    "model": st.sampled_from(["fuzz", "other", None]),
    "n": st.integers(-1, 4),
    "echo": st.booleans(),
    "logprobs": st.integers(-1, 22),
    "prompt_logprobs": st.integers(-1, 22),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
}
_TOKENIZE = {"prompt": _texts, "messages": _messages, "return_token_strs": st.booleans(), **_TEMPLATE}
_FRAMES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "generate": _object({}, _GENERATE).map(_bounded),
    "cancel": _object({}, {"target": _scalars, "request_id": st.text(max_size=9)}),
    "tokenize": _object({}, _TOKENIZE),
    "detokenize": _object({"tokens": _token_ids}, {}),
    "models": _object({}, {}),
    "status": _object({}, {}),
    "requests": _object({}, {"state": _scalars, "limit": st.integers(-1, 2000), "request_id": _scalars}),
    "subscribe": _object(
        {}, {"interval_ms": st.integers(0, 200), "events": st.booleans(), "after": _scalars}
    ),
    "record": _object({}, {}),
    "unsubscribe": _object({"target": st.integers(0, 9)}, {}),
    "drain": _object({}, {"limit_s": st.floats(-1, 2), "cancel": st.booleans(), **_ACT}),
    "partition.get": _object({}, {}),
    "partition.set": _object({}, _SPLIT | _ACT),
    "partition.clear": _object({}, _ACT),
    "slo.get": _object({}, {}),
    "slo.set": _object({}, _SLO | _ACT),
}
assert set(_FRAMES) == set(TABLE) - {"shutdown"}, "an operation is not fuzzed"


def _encodable(fields: dict[str, Any]) -> bool:
    try:
        encode_frame(fields)
    except SemipdError:  # whole numbers of more than 64 bits, lone surrogates
        return False
    return True


@st.composite
def frames(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests for one connection, sent at once; their ids are their places."""
    ops = draw(st.lists(st.sampled_from(sorted(_FRAMES)), min_size=1, max_size=4))
    made = [draw(_FRAMES[op].filter(_encodable)) | {"id": idx, "op": op} for idx, op in enumerate(ops)]
    if draw(st.integers(0, 20)) == 0:
        made[-1]["op"] = draw(
            _anything.filter(lambda value: _encodable({"op": value}) and value != "shutdown")
        )
    return made


@st.composite
def raw_frames(draw: st.DrawFn) -> bytes:
    """Bytes for the socket, before or after a hello."""
    greeting = draw(st.sampled_from([b"", encode_frame(hello("fuzz"))]))
    bodies = st.binary(max_size=60) | st.sampled_from(
        [b"\xc1", b"\x80", b"\x90", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x81\xa2id\xc0"]
    )
    pieces = [
        HEADER.pack(draw(st.just(len(body)) | st.sampled_from([0, 1, 2**22 + 1, 2**32 - 1]))) + body
        for body in draw(st.lists(bodies, max_size=3))
    ]
    return greeting + draw(st.just(b"".join(pieces)) | st.binary(max_size=60))
