"""Bodies with very many faults, or numbers in an odd spelling, are told from good ones in a short time."""

import json
import random
from typing import Any, cast

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from semipd.core.errors import SemipdError
from semipd.core.plan import TokenLogprobs
from semipd.daemon.operators.actions import parsed_body
from semipd.daemon.operators.partition import PartitionOverride, SloUpdate
from semipd.daemon.requests.schema import MAX_PROBLEMS, TokenIds, check_names, refusal
from semipd.daemon.servers.socket_operations import TABLE
from semipd.wire.packed_top import PackedTop

MANY = {f"k{idx}": 1 for idx in range(36_000)}


@pytest.mark.parametrize("schema", [operation.body for operation in TABLE.values()])
def test_no_operation_takes_names_it_does_not_know(schema: type[BaseModel]) -> None:
    """One look per name: the schema would make an error of each."""
    with pytest.raises(SemipdError, match=r"There is no field k0\.") as refused:
        check_names(schema, {"id": 1} | MANY)
    assert (refused.value.code, refused.value.param) == ("unknown_field", "k0")
    check_names(schema, dict.fromkeys(schema.model_fields))


@pytest.mark.parametrize("schema", [PartitionOverride, SloUpdate])
def test_nor_do_operators_wishes(schema: type[BaseModel]) -> None:
    for body in (MANY, {"x" * 1000: 1} | MANY):
        with pytest.raises(SemipdError) as refused:
            parsed_body(schema, json.dumps(body).encode())
        assert refused.value.code == "unknown_field"
        assert len(refused.value.message) < 120
    for broken in (b"[1]", b"{", b"\xff"):
        with pytest.raises(SemipdError):
            parsed_body(schema, broken)


def test_very_many_faults_are_not_described() -> None:
    class Error:
        def error_count(self) -> int:
            return MAX_PROBLEMS + 1

        def errors(self, **_: Any) -> list[Any]:
            raise AssertionError("described")

    refused = refusal(cast(ValidationError, Error()))
    assert (refused.code, str(MAX_PROBLEMS + 1) in refused.message) == ("invalid_value", True)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    ids = TypeAdapter(TokenIds)
    rng = random.Random(3)
    for _ in range(50):
        expected = [rng.randrange(2**31) for _ in range(rng.randrange(1, 40))]
        written: list[Any] = [
            float(one) if idx == 0 or rng.random() < 0.5 else one for idx, one in enumerate(expected)
        ]
        found = ids.validate_python(written, strict=True)
        assert found == expected
        assert set(map(type, found)) == {int}
    for wrong in (5.5, float("nan"), float("inf"), True, "5", None, 1e300, [1]):
        for written in ([5.0, wrong], [wrong, 5.0]):
            with pytest.raises(ValidationError):
                ids.validate_python(written, strict=True)


def test_packed_alternatives_are_those_that_came() -> None:
    rng = random.Random(4)
    for size in (0, 1, 20, 400):
        pairs = tuple((rng.randrange(2**31), -rng.random()) for _ in range(size))
        packed = PackedTop(pairs)
        assert len(packed) == size
        assert tuple(packed) == pairs == packed[:] == PackedTop([list(pair) for pair in pairs])
        assert packed[:3] == pairs[:3]
        assert TokenLogprobs(1, -0.5, packed, 1) == TokenLogprobs(1, -0.5, pairs, 1)
        assert hash(packed) == hash(pairs)
