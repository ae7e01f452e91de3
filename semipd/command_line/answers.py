"""What a daemon says, read by somebody of perhaps another version."""

from collections.abc import Iterator
from contextlib import contextmanager

from semipd.core.errors import SemipdError

_OF_ANOTHER_FORM = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What taking a document apart raises when it is not built as it should be."""


@contextmanager
def understood(source: object) -> Iterator[None]:
    """Inside, only what came from `source` is read and shown. Raises SemipdError(`malformed_answer`)."""
    try:
        yield
    except _OF_ANOTHER_FORM as error:
        raise SemipdError(
            "malformed_answer",
            f"What {source} answers is not understood ({type(error).__name__}: {error!s:.100}).",
            "Is it a semipd daemon, of this version?",
        ) from error
