"""Large JSON in parts, against json.dumps."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semipd.daemon.web import json_text
from semipd.daemon.web.json_text import Later, parts_of


def dumps(value: Any) -> str:
    return b"".join(parts_of(value)).decode()


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=60
)


@settings(deadline=None, max_examples=150)
@given(VALUES, st.integers(1, 12))
def test_it_is_what_json_writes(value: Any, part: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "PART_VALUES", part)
        assert dumps(value) == json.dumps(value)
        assert dumps({"a": [Later(lambda: value)], "b": 1}) == json.dumps({"a": [value], "b": 1})


def test_no_call_of_the_encoder_writes_more_than_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {str(token): {"logprob": -1.5, "rank": token, "decoded_token": "x"} for token in range(20_000)}
    value = {"choices": [{"prompt_logprobs": [None, Later(lambda: row), row], "text": "a" * 100_000}]}
    wanted = json.dumps({"choices": [{"prompt_logprobs": [None, row, row], "text": "a" * 100_000}]})
    written: list[int] = []

    def noting(part: object) -> str:
        written.append(json_text._count(part, 10**9))
        return json.dumps(part)

    monkeypatch.setattr(json_text, "json", type("Noting", (), {"dumps": staticmethod(noting)}))
    assert dumps(value) == wanted
    assert max(written) <= json_text.PART_VALUES + 1
