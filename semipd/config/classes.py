"""Service classes: tables [classes.NAME] of the configuration, as many as there are."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from semipd.config.schema import OptionSpec, Value, nearest_key, option, section_specs
from semipd.core.errors import SemipdError
from semipd.core.slo import BATCH_CLASS, DEFAULT_CLASS, TARGET_BOUNDS, Targets

PREFIX = "classes."
MAX_CLASSES = 32
"""Each has metrics of its own."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


def _target(description: str) -> Any:
    bounds = TARGET_BOUNDS["ttft_ms"]
    return option(0.0, description, minimum=bounds.low, maximum=bounds.high)


@dataclass(frozen=True, slots=True)
class ClassConfig:
    """What requests of one class are measured by, and who may use it."""

    ttft_ms: float = _target("Target from arrival to the first token, in milliseconds; 0: none.")
    ttft_ms_per_1k_tokens: float = _target(
        "Added to that target for each 1000 prompt tokens that are not in the prefix cache, in milliseconds."
    )
    tpot_ms: float = _target("Target of the mean time per further token, in milliseconds; 0: none.")
    itl_ms: float = _target(
        "Target of the times between two tokens, at slo.itl_percentile of them, in milliseconds; 0: none."
    )
    default_keys: str = option(
        "", "Names of API keys, separated by commas, whose requests are of this class unless they say so."
    )
    allowed_keys: str = option(
        "", "Names of API keys, separated by commas, that may use this class; empty: everybody."
    )

    @property
    def targets(self) -> Targets:
        return Targets.of({name: getattr(self, name) for name in TARGET_BOUNDS})

    @property
    def default_for(self) -> frozenset[str]:
        return _names(self.default_keys)

    @property
    def allowed_for(self) -> frozenset[str]:
        """Empty: everybody. Whoever has the class by default may use it."""
        allowed = _names(self.allowed_keys)
        return allowed | self.default_for if allowed else allowed


def class_specs(name: str) -> list[OptionSpec]:
    """The options of one class."""
    return section_specs(PREFIX + name, ClassConfig)


def class_spec(key: str, origin: str) -> OptionSpec:
    """`key`: classes.NAME.option. Raises SemipdError: `invalid_config` for the name, `unknown_option`."""
    name, _, option_name = key.removeprefix(PREFIX).rpartition(".")
    _check_name(name, key, origin)
    specs = {spec.key: spec for spec in class_specs(name)}
    if key not in specs:
        near = nearest_key(key, specs)
        hint = f"Did you mean {near}?" if near else f"A class has {', '.join(TARGET_BOUNDS)} and keys."
        message = f"There is no option {option_name or key} of a class ({key}, {origin})."
        raise SemipdError("unknown_option", message, hint, param=key)
    return specs[key]


def _check_name(name: str, key: str, origin: str) -> None:
    if name == DEFAULT_CLASS:
        message = (
            f"The class {DEFAULT_CLASS} has its targets from the section [slo], not from {key} ({origin})."
        )
        raise SemipdError("invalid_config", message, "Set slo.ttft_ms and the others of [slo].", param=key)
    if not _NAME.fullmatch(name):
        raise SemipdError(
            "invalid_config",
            f"{name!r:.60} is no name of a class ({key:.80}, {origin}): a letter, then up to 31 letters, "
            "digits and dashes, all of them small.",
            "Write a table [classes.NAME], such as [classes.chat].",
            param=key,
        )


def classes_of(values: Mapping[str, Value]) -> dict[str, ClassConfig]:
    """The classes in a configuration's values, by name; always with `batch`. Raises
    SemipdError(`invalid_config`)."""
    names = dict.fromkeys(
        key.removeprefix(PREFIX).partition(".")[0] for key in values if key.startswith(PREFIX)
    )
    found = {name: _class_of(values, name) for name in names}
    if len(found) > MAX_CLASSES:
        message = f"{len(found)} classes are configured; there can be {MAX_CLASSES}."
        raise SemipdError("invalid_config", message, "Join some of them.", param="classes")
    for name, config in found.items():
        if config.ttft_ms_per_1k_tokens and not config.ttft_ms:
            key = f"{PREFIX}{name}.ttft_ms_per_1k_tokens"
            message = f"{key} adds to {PREFIX}{name}.ttft_ms, which is 0: none."
            raise SemipdError("invalid_config", message, "Set ttft_ms of the class too.", param=key)
    _check_default_keys(found)
    return {BATCH_CLASS: ClassConfig()} | found


def check_keys(classes: Mapping[str, ClassConfig], *, has_callers: bool) -> None:
    """`has_callers`: callers have names, so that classes can depend on them. Raises
    SemipdError(`conflicting_options`)."""
    for name, config in classes.items():
        for option_name, value in asdict(config).items():
            if option_name.endswith("_keys") and value and not has_callers:
                key = f"{PREFIX}{name}.{option_name}"
                raise SemipdError(
                    "conflicting_options",
                    f"{key} names callers, and nobody has a name: neither auth.keys_file nor "
                    "socket.group is set.",
                    f"Set auth.keys_file, or leave {key} out.",
                    param=key,
                )


def _class_of(values: Mapping[str, Value], name: str) -> ClassConfig:
    prefix = f"{PREFIX}{name}."
    fields = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return ClassConfig(**fields)  # type: ignore[arg-type]


def _check_default_keys(classes: Mapping[str, ClassConfig]) -> None:
    owners: dict[str, str] = {}
    for name, config in classes.items():
        for key_name in sorted(config.default_for):
            if key_name in owners:
                raise SemipdError(
                    "invalid_config",
                    f"The key {key_name!r:.80} has two classes by default: {owners[key_name]} and {name}.",
                    f"Leave it in one of the lists {PREFIX}*.default_keys.",
                    param=f"{PREFIX}{name}.default_keys",
                )
            owners[key_name] = name


def _names(text: str) -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, text.split(","))))


def example() -> Iterable[str]:
    """Lines of a file without classes, that show how to write one."""
    yield "# A table for each service class, [classes.NAME]. Requests name theirs in the body (slo.class) or"
    yield "# in the header x-semipd-class, or have it by their key."
    yield f"# {BATCH_CLASS} exists always, without targets."
    yield "# [classes.chat]"
    lines = (
        (f"# # {spec.rule.description}", f"# {spec.key.rpartition('.')[2]} = {spec.default!r}")
        for spec in class_specs("chat")
    )
    yield from (line.replace("''", '""') for line in chain.from_iterable(lines))
