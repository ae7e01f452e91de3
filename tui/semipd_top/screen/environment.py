"""Textual takes settings from the environment, and fails in many ways when it cannot use one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from semipd.core.brief import brief
from semipd.core.errors import SemipdError

PREFIX = "TEXTUAL_"


@contextmanager
def blamed_on_variables(*, if_named: bool = False) -> Iterator[None]:
    """While Textual is imported or started. Raises SemipdError(`invalid_environment`) in the place of what it
    raises, if there are such variables; `if_named`: only if it names one or its value."""
    try:
        yield
    except SemipdError:
        raise
    except Exception as error:
        variables = _named(f"{error}") or ([] if if_named else _given())
        if not variables:
            raise
        why = f"{type(error).__name__}: {brief(str(error), 200)}"
        message = f"Textual cannot be started with {' or '.join(variables)} of the environment ({why})."
        raise SemipdError("invalid_environment", message, f"Run: unset {' '.join(variables)}") from error


def _given() -> list[str]:
    return sorted(name for name, value in os.environ.items() if name.startswith(PREFIX) and value)


def _named(complaint: str) -> list[str]:
    """Those whose name or value is complained of."""
    return [name for name in _given() if name in complaint or os.environ[name] in complaint]
