"""What a body costs is told without reading it; texts cost nothing."""

import json
import random
from typing import Any

import pytest

from semipd.core.brief import brief
from semipd.core.errors import SemipdError
from semipd.daemon.web import body_cost
from semipd.daemon.web.body_cost import check_cost
from semipd.wire.frames import LIST_COST, MAP_COST, NAMED_COST


def cost_of(value: Any) -> int:
    """By walking: a comma before each but the first, and what the docstring says."""
    if isinstance(value, dict):
        inner = sum(map(cost_of, value.values())) + max(len(value) - 1, 0)
        return inner + MAP_COST + (NAMED_COST - 1) * len(value)
    if isinstance(value, list):
        return sum(map(cost_of, value)) + max(len(value) - 1, 0) + LIST_COST
    of_digits = body_cost.DIGITS_COST * (len(str(value)) // 20) if isinstance(value, int) else 0
    return of_digits + int(isinstance(value, float))


def made(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7)
    if depth > 4 or kind < 3:
        letters = 'ab"\\,:[{}]\n\u00e9\U0001f600'
        text = "".join(rng.choices(letters, k=rng.randrange(30)))
        return rng.choice([1, 10**19, 10**59, None, True, -2.5, text])
    if kind < 5:
        return [made(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {
        str(key) + rng.choice(["", '"', "\\", ","]): made(rng, depth + 1) for key in range(rng.randrange(5))
    }


async def test_digits_of_huge_numbers_count() -> None:
    for number, most in ((b"1" * 4299, 500), (b"-" + b"1" * 30, 70_000), (b"5." + b"0" * 29, 60_000)):
        body = b'{"prompt":"a","x":[' + b",".join([number] * most) + b"]}"
        with pytest.raises(SemipdError, match="digits in a row") as refused:
            await check_cost(body, 262144)
        assert refused.value.code == "body_too_large"
    await check_cost(b'{"x":[' + b",".join([b"18446744073709551615"] * 60_000) + b"]}", 262144)
    await check_cost(b'{"x":"' + b"1" * 8_000_000 + b'"}', 262144)


@pytest.mark.parametrize("seed", range(40))
async def test_the_cost_is_that_of_the_values(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    size = rng.choice([1, 2, 3, 7, 64, 2**17])
    monkeypatch.setattr(body_cost, "_EXACT_BYTES", size)
    # digits count within a piece
    monkeypatch.setattr(body_cost, "DIGITS_COST", 3 if size == 2**17 else 0)
    value = [made(rng) for _ in range(40)]
    body, cost = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(), cost_of(value)
    await check_cost(body, cost)
    with pytest.raises(SemipdError) as refused:
        await check_cost(body, cost - 1)
    assert refused.value.code == "body_too_large"
    assert f"limits.max_body_values is {cost - 1}" in refused.value.message


@pytest.mark.parametrize("text", [",[" * 10**6, '\\"' * 10**6, "\\\\" * 10**6, "a,b:c{" * 10**5])
async def test_punctuation_inside_a_text_costs_nothing(text: str) -> None:
    await check_cost(b'{"prompt":"' + text.encode() + b'"}', 5000)


@pytest.mark.parametrize("body", [b"[" * 10**5, b'{"prompt": ' + b'{"a":' * 10**5])
async def test_what_is_too_deep_to_read_is_no_json(body: bytes) -> None:
    with pytest.raises(SemipdError, match="recursion limit") as refused:
        await check_cost(body, 262144)
    assert refused.value.code == "malformed_json"


def test_values_in_messages_are_short_whatever_they_are() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**7, [1] * 10**6, 10**5000, {"a": "b" * 10**6}, b"x" * 10**6):
        assert 0 < len(brief(value)) <= 80
    assert brief({"a": [1, "b"]}) == repr({"a": [1, "b"]})
    assert brief("it's") == repr("it's")
