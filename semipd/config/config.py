"""Configuration: TOML file < environment < command line, resolved once, then frozen."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from semipd.config.classes import (
    PREFIX,
    ClassConfig,
    check_keys,
    class_spec,
    class_specs,
    classes_of,
    example,
)
from semipd.config.file import read_toml, tables
from semipd.config.schema import OptionSpec, Value, nearest_key, section_specs, toml_literal
from semipd.config.sections import (
    AdmissionConfig,
    AuthConfig,
    CudaConfig,
    DrainConfig,
    EngineConfig,
    KvConfig,
    LimitsConfig,
    PartitionConfig,
    ServedModelConfig,
    ServerConfig,
    SloConfig,
    SocketConfig,
    SupervisionConfig,
)
from semipd.core.errors import SemipdError
from semipd.core.settings import (
    PREFILL_GRAPH_FILL,
    PREFILL_GRAPH_ROWS,
    TMA_BLOCK_SIZE,
    CudaSettings,
    EngineSettings,
)
from semipd.wire.address import default_socket_path

ENV_PREFIX = "SEMIPD__"
"""Two underscores: Kubernetes adds SEMIPD_PORT and the like for a service called semipd, never these."""


class Explained(NamedTuple):
    key: str
    value: Value
    origin: str
    description: str


class Override(NamedTuple):
    """A value given as text on the command line; `flag` is how it was spelled there."""

    key: str
    text: str
    flag: str


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of a daemon. Nothing here changes after start-up."""

    server: ServerConfig = field(default_factory=ServerConfig)
    socket: SocketConfig = field(default_factory=SocketConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    drain: DrainConfig = field(default_factory=DrainConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    model: ServedModelConfig = field(default_factory=ServedModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    kv: KvConfig = field(default_factory=KvConfig)
    cuda: CudaConfig = field(default_factory=CudaConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    slo: SloConfig = field(default_factory=SloConfig)
    classes: Mapping[str, ClassConfig] = field(default_factory=lambda: MappingProxyType(classes_of({})))
    """Service classes by name, `default` not among them."""

    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def socket_path(self) -> Path:
        if not self.server.socket:
            return default_socket_path()
        return Path(os.path.expanduser(self.server.socket))  # noqa: PTH111 (Path's raises for an unknown user)

    @property
    def served_model_name(self) -> str:
        return self.model.served_model_name or self.model.name

    def value(self, key: str) -> Value:
        section, _, name = key.rpartition(".")
        is_class = section.startswith(PREFIX)
        owner = self.classes[section.removeprefix(PREFIX)] if is_class else getattr(self, section)
        value: Value = getattr(owner, name)
        return value

    def origin(self, key: str) -> str:
        """Where the value came from: "default", "file PATH", "environment variable NAME" or "flag --NAME"."""
        return self.origins.get(key, "default")

    def explain(self) -> list[Explained]:
        return [
            Explained(spec.key, self.value(spec.key), self.origin(spec.key), spec.rule.description)
            for spec in self._specs()
        ]

    def _specs(self) -> Iterator[OptionSpec]:
        """Of every section, then of every class."""
        yield from SPECS.values()
        for name in self._written_classes():
            yield from class_specs(name)

    def _written_classes(self) -> list[str]:
        """Those that say something."""
        return [
            name for name, config in self.classes.items() if config != ClassConfig() or self._is_given(name)
        ]

    def _is_given(self, class_name: str) -> bool:
        return any(key.startswith(f"{PREFIX}{class_name}.") for key in self.origins)

    def to_toml(self) -> str:
        """A file that resolves to this configuration, with a comment over each key."""
        lines: list[str] = []
        section = ""
        for spec in self._specs():
            owner, _, name = spec.key.rpartition(".")
            if owner != section:
                section = owner
                lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
            bounds = f" ({spec.bounds})" if spec.bounds else ""
            lines.append(f"# {spec.rule.description}{bounds}")
            lines.append(f"{name} = {toml_literal(self.value(spec.key))}")
        if not self._written_classes():
            lines += ["", *example()]
        return "\n".join(lines) + "\n"

    def engine_settings(self, model_dir: str | Path) -> EngineSettings:
        """What the engine process is told; `model_dir` is the local folder that model.name resolved to."""
        return EngineSettings(
            model_dir=str(model_dir),
            model_name=self.model.name,
            device=self.engine.device,
            dtype=self.model.dtype,
            scheduler=self.engine.scheduler,
            order=self.engine.order,
            max_late_s=self.admission.max_late_s,
            max_model_len=self.model.max_model_len,
            max_num_seqs=self.engine.max_num_seqs,
            prefill_chunk_tokens=self.engine.prefill_chunk_tokens,
            step_token_budget=self.engine.step_token_budget,
            kv_bytes=self.kv.bytes,
            kv_fraction=self.kv.fraction,
            max_num_blocks=0,
            prefill_units=self.engine.prefill_units,
            log_format=self.server.log_format,
            sim_profile=self.engine.sim_profile,
            partition_mode=self.partition.mode,
            partition_policy=self.partition.policy,
            merge_tokens=self.partition.merge_tokens,
            slo_ttft_ms=self.slo.ttft_ms,
            slo_tpot_ms=self.slo.tpot_ms,
            slo_percentile=self.slo.percentile,
            slo_window_s=self.slo.window_s,
            slo_ttft_ms_per_1k_tokens=self.slo.ttft_ms_per_1k_tokens,
            slo_itl_ms=self.slo.itl_ms,
            slo_itl_percentile=self.slo.itl_percentile,
            state_dir=self.partition.state_dir,
            start_patience=self.supervision.start_patience,
            worker_step_limit_s=self.supervision.worker_step_limit_s,
            cuda=CudaSettings(**asdict(self.cuda)),
        )


SECTIONS: dict[str, type] = {
    "server": ServerConfig,
    "socket": SocketConfig,
    "auth": AuthConfig,
    "limits": LimitsConfig,
    "admission": AdmissionConfig,
    "drain": DrainConfig,
    "supervision": SupervisionConfig,
    "model": ServedModelConfig,
    "engine": EngineConfig,
    "kv": KvConfig,
    "cuda": CudaConfig,
    "partition": PartitionConfig,
    "slo": SloConfig,
}

SPECS: dict[str, OptionSpec] = {
    spec.key: spec for section, record in SECTIONS.items() for spec in section_specs(section, record)
}


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    overrides: Iterable[Override] = (),
) -> Config:
    """Resolve the configuration. Without `path` no file is read: there is no implicit one.

    Raises SemipdError: `config_not_found`, `config_unreadable`, `unknown_option`, `invalid_config`,
    `conflicting_options` (also: an option of [cuda] for another device).
    """
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    layers = [_from_file(path) if path else {}, _from_environment(environ), _from_overrides(overrides)]
    for layer in layers:
        for key, (value, origin) in layer.items():
            values[key], origins[key] = value, origin
    sections = {name: record(**_of_section(values, name)) for name, record in SECTIONS.items()}
    classes = MappingProxyType(classes_of(values))
    config = Config(**sections, classes=classes, origins=MappingProxyType(origins))
    check_keys(classes, has_callers=bool(config.auth.keys_file or config.socket.group))
    _check_cuda(config)
    _check_prefill_graphs(config)
    _check_tma_loads(config)
    return config


def _check_cuda(config: Config) -> None:
    """What only a GPU can do is not accepted and then ignored."""
    if config.engine.device == "cuda":
        return
    for spec in (spec for spec in SPECS.values() if spec.key.startswith("cuda.")):
        value = config.value(spec.key)
        if value != spec.default:
            raise SemipdError(
                "conflicting_options",
                f"{spec.key} = {toml_literal(value)} ({config.origin(spec.key)}) is for the device cuda; "
                f"engine.device is {config.engine.device} ({config.origin('engine.device')}).",
                f"Leave {spec.key} out, or set engine.device to cuda.",
                param=spec.key,
            )


def _check_prefill_graphs(config: Config) -> None:
    """That there will be steps to replay."""
    least = int(PREFILL_GRAPH_ROWS[0] * PREFILL_GRAPH_FILL)
    if not config.cuda.prefill_graphs:
        return
    if config.engine.scheduler != "semipd":
        key, wanted = "engine.scheduler", "semipd"
    elif config.engine.prefill_chunk_tokens < least:
        key, wanted = "engine.prefill_chunk_tokens", f"at least {least}"
    elif config.cuda.prefill_attention != "triton":
        key, wanted = "cuda.prefill_attention", "triton"
    else:
        return
    raise SemipdError(
        "conflicting_options",
        f"cuda.prefill_graphs ({config.origin('cuda.prefill_graphs')}) is of no use: {key} is "
        f"{config.value(key)} ({config.origin(key)}), and must be {wanted}.",
        f"Leave cuda.prefill_graphs out, or change {key}.",
        param="cuda.prefill_graphs",
    )


def _check_tma_loads(config: Config) -> None:
    """A box of 16 tokens is no tile."""
    if config.cuda.tma_loads and config.cuda.kv_block_size < TMA_BLOCK_SIZE:
        raise SemipdError(
            "conflicting_options",
            f"cuda.tma_loads ({config.origin('cuda.tma_loads')}) loads blocks of {TMA_BLOCK_SIZE} tokens; "
            f"cuda.kv_block_size is {config.cuda.kv_block_size} ({config.origin('cuda.kv_block_size')}).",
            f"Set cuda.kv_block_size to {TMA_BLOCK_SIZE}, or leave cuda.tma_loads out.",
            param="cuda.tma_loads",
        )


def default_engine_settings(**changes: Any) -> EngineSettings:
    """The settings of an engine whose configuration says nothing, with some of them changed."""
    return replace(load_config().engine_settings(""), **changes)


Layer = dict[str, tuple[Value, str]]
"""One source's values: key -> (value, origin)."""


def _of_section(values: Mapping[str, Value], section: str) -> dict[str, Value]:
    prefix = section + "."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _from_file(path: Path) -> Layer:
    origin = f"file {path}"
    layer: Layer = {}
    for section, table in tables(read_toml(path)):
        if not isinstance(table, dict):
            raise _unknown(section, origin)
        for name, raw in table.items():
            spec = _spec(f"{section}.{name}", origin)
            layer[spec.key] = spec.check(raw, origin), origin
        if section not in SECTIONS and not section.startswith(PREFIX):
            raise _unknown(section, origin)
    return layer


def _from_environment(environ: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX):
            origin = f"environment variable {variable}"
            key = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            if variable != variable.upper():
                raise _unknown(key, origin, f"Write it in capitals: {variable.upper()}.")
            spec = _spec(key, origin)
            layer[key] = spec.parse(environ[variable], origin), origin
    return layer


def _from_overrides(overrides: Iterable[Override]) -> Layer:
    layer: Layer = {}
    for key, text, flag in overrides:
        origin = f"flag {flag}"
        spec = _spec(key, origin)
        if key in layer:
            message = f"{key} is given twice on the command line ({layer[key][1]} and {origin})."
            raise SemipdError("conflicting_options", message, "Keep one of them.", param=key)
        layer[key] = spec.parse(text, origin), origin
    return layer


def _spec(key: str, origin: str) -> OptionSpec:
    if key.startswith(PREFIX):
        return class_spec(key, origin)
    spec = SPECS.get(key)
    if spec is None:
        raise _unknown(key, origin)
    return spec


def _unknown(key: str, origin: str, hint: str = "") -> SemipdError:
    near = nearest_key(key, SPECS)
    if not hint:
        hint = f"Did you mean {near}?" if near else f"Known sections: {', '.join(SECTIONS)}."
    return SemipdError("unknown_option", f"There is no option {key} ({origin}).", hint, param=key)
