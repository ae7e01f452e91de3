"""Requests at the edges: numbers where a type ends, keys with two spellings, more sequences than a queue.

Bodies are written as text: what JSON libraries do not write can be sent too. A case says what would be wrong
with an answer of success, if anything would.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from hypothesis import strategies as st

MAX_WAITING = 64
"""Of the daemon under test (admission.max_waiting_requests)."""

MANY_KEYS = 5000
"""More than anybody may send in one map."""


class Case(NamedTuple):
    """`refused`: why it must not be answered with success; empty: it may be."""

    method: str
    path: str
    body: bytes
    refused: str = ""


EDGES = [
    "0", "-0", "-0.0", "1", "-1", "1.0", "2.0", "0.5", "true", "false", "null", '"1"', '"nan"', '"inf"',
    '"1e3"', "127", "128", "255", "256", "32767", "32768", "65535", "65536", "16777217", "2147483647",
    "2147483648", "-2147483648", "-2147483649", "4294967295", "4294967296", "9007199254740991",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
    "-9223372036854775809", "18446744073709551615", "18446744073709551616", "1e18", "1e19", "1e30",
    "-1e30", "1e38", "3.4e38", "3.5e38", "1e300", "-1e300", "1.7976931348623157e308", "1e309", "-1e309",
    "1e400", "1e-7", "1e-30", "1e-38", "1e-45", "1e-46", "1e-300", "1e-308", "1e-320", "5e-324",
    "1e-400", "-1e-320", "NaN", "Infinity", "-Infinity", "9" * 20, "9" * 40, "9" * 400, "9" * 4301,
    "-" + "9" * 5000, "1" + "0" * 300, "0." + "0" * 400 + "1", "1e99999",
]  # fmt: skip
"""JSON texts, and what passes for JSON in many languages."""

_SAMPLED = {
    "max_tokens": "3", "temperature": "0.7", "top_p": "0.9", "top_k": "5", "min_p": "0.1", "seed": "1",
    "repetition_penalty": "1.1", "presence_penalty": "0.5", "frequency_penalty": "0.5", "min_tokens": "1",
    "timeout_ms": "60000", "logit_bias": '{"5": 1}', "stop_token_ids": "[7]", "allowed_token_ids": "[7, 8]",
    "priority": "0",
}  # fmt: skip
_ANSWERED = {"n": "1", "prompt_logprobs": "1", "max_completion_tokens": "2", "top_logprobs": "1"}
_BODIES: dict[tuple[str, str], tuple[dict[str, str], dict[str, str]]] = {
    ("POST", "/v1/completions"): (
        {"prompt": '"abc"', "max_tokens": "3"},
        _SAMPLED | _ANSWERED | {"logprobs": "1", "best_of": "1"},
    ),
    ("POST", "/v1/chat/completions"): (
        {"messages": '[{"role":"user","content":"a"}]', "max_tokens": "3", "logprobs": "true"},
        _SAMPLED | _ANSWERED | {"logprobs": "true"},
    ),
    ("PUT", "/v1/partition"): (
        {"dry_run": "true"},
        {"prefill_units": "1", "decode_units": "1", "expires_s": "1"},
    ),
    ("PATCH", "/v1/slo"): (
        {"reason": '"fuzz"'},
        {"ttft_ms": "500", "tpot_ms": "50", "percentile": "90", "window_s": "60"},
    ),
}
"""A body that is good, and every numeric field with a usual value."""

_LIKELY = [*_BODIES, *[("POST", "/v1/completions")] * 4, *[("POST", "/v1/chat/completions")] * 2]


def _object(fields: Mapping[str, str]) -> bytes:
    return ("{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in fields.items()) + "}").encode()


def _in_place(name: str, edge: str) -> st.SearchStrategy[str]:
    """The edge as the field, or within it if it holds others."""
    inside = {
        "logit_bias": ['{"5": %s}', '{"%s": 1}'],
        "stop_token_ids": ["[%s]", "[5, %s]"],
        "allowed_token_ids": ["[%s]", "[5, %s]"],
    }.get(name, [])
    return st.sampled_from([edge, *(text % edge.strip('"') for text in inside)])


@st.composite
def numbers(draw: st.DrawFn) -> Case:
    """A good body of which one number is at an edge, now and then two."""
    method, path = draw(st.sampled_from(_LIKELY))
    good, numeric = _BODIES[method, path]
    most = draw(st.sampled_from([1, 1, 1, 2]))
    names = draw(st.lists(st.sampled_from(sorted(numeric)), min_size=1, max_size=most, unique=True))
    spoiled = {name: draw(_in_place(name, draw(st.sampled_from(EDGES)))) for name in names}
    if "max_completion_tokens" in spoiled:  # two names of one limit
        good = {name: text for name, text in good.items() if name != "max_tokens"}
    return Case(method, path, _object(good | spoiled))


_LOGITS = {
    name: _SAMPLED[name]
    for name in (
        "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "logit_bias",
    )
}  # fmt: skip


@st.composite
def logit_numbers(draw: st.DrawFn) -> Case:
    """Floating-point numbers at an edge, in the fields that change logits; all of them are finite JSON."""
    names = draw(st.lists(st.sampled_from(sorted(_LOGITS)), min_size=1, max_size=3, unique=True))
    edges = st.sampled_from([edge for edge in EDGES if "e" in edge and edge[-1].isdecimal()])
    spoiled = {name: draw(_in_place(name, draw(edges))) for name in names}
    return Case("POST", "/v1/completions", _object({"prompt": "[5, 5, 6, 7]", "max_tokens": "3"} | spoiled))


@st.composite
def prompt_numbers(draw: st.DrawFn) -> Case:
    """Token ids at an edge, where token ids may stand."""
    edges = draw(st.lists(st.sampled_from(EDGES), min_size=1, max_size=3))
    path, name = draw(st.sampled_from([("/v1/completions", "prompt"), ("/detokenize", "tokens")]))
    return Case("POST", path, _object({name: f"[5, {', '.join(edges)}]", "max_tokens": "2"}))


def spellings(token: int) -> list[str]:
    """What programs read as the same number as its plain digits, which come first."""
    plain = str(token)
    arabic = plain.translate({ord("0") + digit: 0x0660 + digit for digit in range(10)})
    wide = plain.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})
    grouped = f"{plain[0]}_{plain[1:]}" if token > 9 else f"0_{plain}"
    return [
        plain, f" {plain}", f"{plain} ", f"{plain}\n", f"\t{plain}", f"\u00a0{plain}", f"0{plain}",
        f"00{plain}", f"+{plain}", f"-{plain}", f"{plain}.0", f"{plain}e0", hex(token), grouped, arabic,
        wide, f"{plain}\u0000",
    ]  # fmt: skip


@st.composite
def aliases(draw: st.DrawFn) -> Case:
    """Keys that mean one token, keys given twice, more keys than anybody needs, names in another spelling."""
    path, good = draw(
        st.sampled_from([("/v1/completions", '"prompt":"a"'), ("/v1/chat/completions", '"messages":[]')])
    )
    if path == "/v1/chat/completions":
        good = '"messages":[{"role":"user","content":"a"}]'
    text, refused = draw(_spelled_twice() | _many_keys() | _renamed())
    return Case("POST", path, f'{{{good},"max_tokens":2,{text}}}'.encode(), refused)


@st.composite
def _spelled_twice(draw: st.DrawFn) -> tuple[str, str]:
    keys = draw(st.lists(st.sampled_from(spellings(draw(st.integers(0, 400)))), min_size=1, max_size=4))
    odd = [key for key in keys if not (key.isascii() and key.isdecimal() and str(int(key)) == key)]
    entries = ",".join(f"{json.dumps(key)}:{draw(st.integers(-100, 100))}" for key in keys)
    return f'"logit_bias":{{{entries}}}', f"the key {odd[0]!r} is no token id" if odd else ""


@st.composite
def _many_keys(draw: st.DrawFn) -> tuple[str, str]:
    num = draw(st.sampled_from([1, 300, MANY_KEYS, 20 * MANY_KEYS]))
    entries = ",".join(f'"{key % 450:0{1 + key // 450}}":1' for key in range(num))
    return f'"logit_bias":{{{entries}}}', f"{num} keys are too many" if num >= MANY_KEYS else ""


@st.composite
def _renamed(draw: st.DrawFn) -> tuple[str, str]:
    """Unknown names are ignored, and a name given twice counts once: either is an answer."""
    name = draw(st.sampled_from(["max_tokens", "top_k", "seed", "n", "stop"]))
    variants = [
        name,
        name.upper(),
        f" {name}",
        f"{name} ",
        name.replace("_", "-"),
        name.title(),
        f"{name}\u0000",
    ]
    names = draw(st.lists(st.sampled_from(variants), min_size=1, max_size=4))
    return ",".join(f"{json.dumps(each)}:{draw(st.integers(1, 3))}" for each in names), ""


@st.composite
def multitudes(draw: st.DrawFn) -> Case:
    """Prompts times choices, around what the queue holds and far beyond."""
    num_prompts = draw(st.sampled_from([1, 2, 8, 31, 32, 63, 64, 65]))
    n = draw(st.sampled_from([1, 2, 4, 16, 63, 64, 65, 128]))
    prompt = draw(st.sampled_from(['"a"', "[5,6,7]"]))
    fields = {"prompt": f"[{','.join([prompt] * num_prompts)}]", "n": str(n), "max_tokens": "1"}
    num = num_prompts * n
    refused = f"{num} sequences are more than the queue of {MAX_WAITING}" if num > MAX_WAITING else ""
    return Case("POST", "/v1/completions", _object(fields), refused)


_FLOATS = [
    0.0,
    -0.0,
    1e30,
    2.0**63,
    2.0**64,
    1e-320,
    5e-324,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e-46,
]
_INTS = [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), -(2**31) - 1]
_WORDS: list[Any] = [True, False, None, "1", "nan", b"1", [], {}]


@st.composite
def edge_frames(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A generate request for the socket; what msgpack can say."""
    edge = st.sampled_from([*_FLOATS, *_INTS, *_WORDS])
    names = draw(st.lists(st.sampled_from(sorted(_SAMPLED)), min_size=1, max_size=3, unique=True))
    frame: dict[str, Any] = {"id": 1, "op": "generate", "prompt": [5, 6, 7], "max_tokens": 3}
    for name in names:
        value = draw(edge)
        within = {"logit_bias": {"5": value}}.get(name, [value] if name.endswith("_ids") else value)
        frame[name] = draw(st.sampled_from([value, within]))
    return [frame]
