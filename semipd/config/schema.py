"""What a configuration option is: its type, default, bounds and description, and how text becomes a value."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from semipd.core.errors import SemipdError

Value = str | int | float | bool
"""What an option can hold; its default's type is its type."""

_TYPE_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""The system has no path with NUL; surrogates stand for bytes that are not UTF-8."""

_BOOLS = {"true": True, "false": False}
_EXACT = 2**53
"""Whole numbers below this are floats too."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What `option` attaches to a dataclass field. Bounds are inclusive; `required`: no empty string."""

    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str | int, ...] = ()
    required: bool = False


def option(
    default: Value,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Iterable[str | int] = (),
    required: bool = False,
) -> Any:
    """A dataclass field with the facts that `config --explain` and the checks need."""
    return field(
        default=default, metadata={"rule": Rule(description, minimum, maximum, tuple(choices), required)}
    )


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One option: `key` is "section.name"."""

    key: str
    default: Value
    rule: Rule

    @property
    def bounds(self) -> str:
        """What is allowed, in words; empty when everything of the type is."""
        rule = self.rule
        if rule.choices:
            return "one of " + ", ".join(map(str, rule.choices))
        if rule.minimum is not None and rule.maximum is not None:
            return f"{rule.minimum} to {rule.maximum}"
        if rule.minimum is not None:
            return f"{rule.minimum} or more"
        return "not empty" if rule.required else ""

    def check(self, raw: object, origin: str) -> Value:
        """`raw` as a value of this option's type within its bounds. Raises SemipdError(`invalid_config`)."""
        wanted = type(self.default)
        value = float(raw) if wanted is float and type(raw) is int and abs(raw) < _EXACT else raw
        if type(value) is not wanted:  # not isinstance: True is no whole number
            raise self._refusal(raw, origin, f"must be {_TYPE_NAMES[wanted]}")
        assert isinstance(value, (str, int, float))
        if isinstance(value, str) and _NO_TEXT.search(value):
            raise self._refusal(raw, origin, "must be UTF-8 text without NUL")
        if not self._within_bounds(value):
            raise self._refusal(raw, origin, f"must be {self.bounds}")
        return value

    def parse(self, text: str, origin: str) -> Value:
        """The same for text from the environment or the command line."""
        wanted = type(self.default)
        try:
            return self.check(_BOOLS[text] if wanted is bool else wanted(text), origin)
        except (ValueError, KeyError) as error:
            raise self._refusal(text, origin, f"must be {_TYPE_NAMES[wanted]}") from error

    def _within_bounds(self, value: Value) -> bool:
        rule = self.rule
        if rule.choices:
            return value in rule.choices
        if isinstance(value, str):
            return bool(value) or not rule.required
        return (rule.minimum is None or value >= rule.minimum) and (
            rule.maximum is None or value <= rule.maximum
        )

    def _refusal(self, raw: object, origin: str, must: str) -> SemipdError:
        allowed = f" ({self.bounds})" if self.bounds and self.bounds not in must else ""
        hint = f"Change it where it was set, or remove it to use the default {self.default!r}."
        message = f"{self.key} {must}{allowed}; got {_shown(raw)} from the {origin}."
        return SemipdError("invalid_config", message, hint, param=self.key)


def _shown(raw: object) -> str:
    try:
        return f"{raw!r:.200}"
    except ValueError:  # TOML's hexadecimal numbers may have more digits than Python writes
        return "a number of thousands of digits"


def section_specs(section: str, record: type) -> list[OptionSpec]:
    """The options of one section, in the order of its dataclass."""
    defaults: dict[str, Any] = {f.name: f.default for f in fields(record)}
    return [OptionSpec(f"{section}.{f.name}", defaults[f.name], f.metadata["rule"]) for f in fields(record)]


def nearest_key(unknown: str, known: Iterable[str]) -> str | None:
    """The known "section.name" someone who wrote `unknown` most likely meant."""
    keys = list(known)
    by_name: dict[str, str] = {}
    for key in keys:
        by_name.setdefault(key.rpartition(".")[2], key)
    name = unknown.rpartition(".")[2]
    if name in by_name:
        return by_name[name]
    if close := difflib.get_close_matches(unknown, keys, n=1, cutoff=0.75):
        return close[0]
    close = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)
    return by_name[close[0]] if close else None


def toml_literal(value: Value) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower() if isinstance(value, bool) else repr(value)
