"""Service classes: which one a request is of, and what holds for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

from semipd.config.classes import ClassConfig
from semipd.config.config import Config
from semipd.core.brief import brief
from semipd.core.errors import SemipdError
from semipd.core.request import Priority
from semipd.core.slo import BATCH_CLASS, DEFAULT_CLASS, NO_TARGETS, Slo, Targets
from semipd.daemon.access.callers import Caller

CLASS_HEADER = "X-Semipd-Class"


@dataclass(frozen=True, slots=True)
class Service:
    """What a request is served under; see core.request.Request."""

    service_class: str = DEFAULT_CLASS
    targets: Targets = NO_TARGETS
    accept_late: bool = False

    @property
    def priority(self) -> Priority:
        return "batch" if self.service_class == BATCH_CLASS else "interactive"


class ServiceOptions(Protocol):
    """What a body says of it. `class_named`: None if it names none; `own_targets`: 0 for no target."""

    @property
    def class_named(self) -> str | None: ...

    @property
    def own_targets(self) -> Mapping[str, float]: ...

    @property
    def accept_late(self) -> bool | None: ...


class ServiceClasses:
    """The classes of a daemon, and the targets that hold for each now."""

    def __init__(self, config: Config) -> None:
        self._configs: Mapping[str, ClassConfig] = config.classes
        self._targets = {DEFAULT_CLASS: Slo(**asdict(config.slo)).targets}
        self._targets |= {name: one.targets for name, one in config.classes.items()}
        self._by_key = {key: name for name, one in config.classes.items() for key in one.default_for}

    @property
    def names(self) -> tuple[str, ...]:
        """`default` first, then as configured."""
        return tuple(self._targets)

    def targets(self, name: str) -> Targets:
        """Raises SemipdError(`unknown_class`)."""
        self._check_known(name, "class")
        return self._targets[name]

    def retarget(self, name: str, targets: Targets) -> None:
        """For requests that come from now on."""
        assert name in self._targets, f"there is no class {name}"
        self._targets[name] = targets

    def of_caller(self, caller: Caller, header: str | None) -> str:
        """Before the body is known. Raises SemipdError: `unknown_class`, `class_not_allowed`."""
        if header is None:
            return self._by_key.get(caller.name, DEFAULT_CLASS)
        self._check(caller, header, CLASS_HEADER)
        return header

    def service(self, caller: Caller, options: ServiceOptions, of_caller: str | None = None) -> Service:
        """What the body says counts before what `of_caller` found. Raises what that raises."""
        name = options.class_named
        if name is None:
            name = of_caller or self.of_caller(caller, None)
        else:
            self._check(caller, name, "slo.class")
        own, targets = options.own_targets, self._targets[name]
        return Service(name, Targets.of(own, targets) if own else targets, bool(options.accept_late))

    def _check(self, caller: Caller, name: str, where: str) -> None:
        self._check_known(name, where)
        allowed = self._configs[name].allowed_for if name in self._configs else ()
        if allowed and not caller.is_operator and caller.name not in allowed:
            raise SemipdError(
                "class_not_allowed",
                f"{where}: the key {caller.name or 'of nobody'!r} may not use the class {name}.",
                f"Leave it out, or have the operator name the key in classes.{name}.allowed_keys.",
                param=where,
            )

    def _check_known(self, name: str, where: str) -> None:
        if name not in self._targets:
            raise SemipdError(
                "unknown_class",
                f"{where}: there is no service class {brief(name, 80)}; there are {', '.join(self.names)}.",
                "Name one of these, or configure a table [classes.NAME].",
                param=where,
            )
