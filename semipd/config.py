"""Configuration: TOML file < environment < command line, resolved once, then frozen."""

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from semipd.config_schema import OptionSpec, Value, nearest_key, option, section_specs, toml_literal
from semipd.core.errors import SemipdError
from semipd.core.logs import LOG_FORMATS, LogFormat
from semipd.core.settings import EngineSettings, SchedulerName
from semipd.core.split import PartitionMode, PolicyName
from semipd.wire.address import default_socket_path

ENV_PREFIX = "SEMIPD__"
"""Two underscores: Kubernetes adds SEMIPD_PORT and the like for a service called semipd, never these."""

_MiB = 2**20
_MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ServerConfig:
    host: str = option("127.0.0.1", "Address the HTTP server listens on.", required=True)
    port: int = option(8808, "Port of the HTTP server; 0: any free port.", minimum=0, maximum=65535)
    socket: str = option("", "Path of the Unix socket; empty: daemon.sock in the user's runtime folder.")
    max_body_bytes: int = option(
        8 * _MiB, "Largest HTTP request body accepted.", minimum=1024, maximum=1024 * _MiB
    )
    backlog: int = option(
        1024,
        "Connections that may wait to be accepted; the system caps it at net.core.somaxconn.",
        minimum=1,
        maximum=65535,
    )
    log_level: str = option(
        "info", "Least severe log lines written to stderr.", choices=("debug", "info", "warning", "error")
    )
    log_format: LogFormat = option(
        "text", "text, or json: one object a line, for log collectors.", choices=LOG_FORMATS
    )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    name: str = option(
        "demo", 'Model to serve: "demo" (bundled), a folder, or a Hugging Face name.', required=True
    )
    served_model_name: str = option("", "Name that clients use for the model; empty: model.name.")
    dtype: str = option(
        "auto",
        "Type of weights and KV; auto: bfloat16 where the device has it, else float32.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    max_model_len: int = option(
        0, "Longest prompt plus output in tokens; 0: what the checkpoint says.", minimum=0, maximum=_MAX_COUNT
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    device: str = option(
        "cpu",
        "Where the model runs; sim: a GPU's timing with made-up tokens; fake: made-up tokens, for tests.",
        choices=("cpu", "cuda", "sim:h200", "sim:h100", "sim:a100", "fake"),
    )
    scheduler: SchedulerName = option(
        "semipd",
        "semipd: two lanes; chunked: merged steps on one lane; prefill-first: prompts before decode.",
        choices=get_args(SchedulerName),
    )
    max_num_seqs: int = option(
        64, "Most sequences prefilling and decoding at once.", minimum=1, maximum=65536
    )
    prefill_chunk_tokens: int = option(
        512, "Most prompt tokens in one prefill step.", minimum=1, maximum=_MAX_COUNT
    )
    step_token_budget: int = option(
        512, "Most tokens in one merged step of the scheduler chunked.", minimum=1, maximum=_MAX_COUNT
    )
    prefill_units: int = option(
        0, "Prefill's share of the cores or SMs while both lanes work; 0: half.", minimum=0, maximum=65536
    )
    sim_profile: str = option("", "JSON file of measured values for the devices sim; empty: built-in ones.")


@dataclass(frozen=True, slots=True)
class KvConfig:
    bytes: int = option(0, "Size of the KV pool in bytes; 0: kv.fraction decides.", minimum=0, maximum=2**50)
    fraction: float = option(
        0.5, "Share of the memory left after the weights that the KV pool takes.", minimum=0.01, maximum=0.95
    )


@dataclass(frozen=True, slots=True)
class PartitionConfig:
    mode: PartitionMode = option(
        "auto",
        "auto: the policy chooses the split; fixed: engine.prefill_units; off: no split, merged steps.",
        choices=get_args(PartitionMode),
    )
    policy: PolicyName = option(
        "predictive",
        "predictive: from predicted step times and the real queue; paper: Algorithm 1 of semi-PD.",
        choices=get_args(PolicyName),
    )
    merge_tokens: int = option(
        8192,
        "Largest merged step that mode auto may run when no split is needed; 0: always split.",
        minimum=0,
        maximum=_MAX_COUNT,
    )
    state_dir: str = option(
        "", "Folder where learned step times are kept; empty: semipd in the user's state folder."
    )


@dataclass(frozen=True, slots=True)
class SloConfig:
    ttft_ms: float = option(
        500.0, "Target from arrival to the first token, in milliseconds.", minimum=0.001, maximum=1e9
    )
    tpot_ms: float = option(
        50.0, "Target of the mean time per further token, in milliseconds.", minimum=0.001, maximum=1e9
    )
    percentile: float = option(
        90.0, "Share of requests, in percent, that should meet both targets.", minimum=1.0, maximum=100.0
    )
    window_s: float = option(
        60.0, "Sliding window over which that is measured, in seconds.", minimum=1.0, maximum=86400.0
    )


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
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    kv: KvConfig = field(default_factory=KvConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    slo: SloConfig = field(default_factory=SloConfig)
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
        section, _, name = key.partition(".")
        value: Value = getattr(getattr(self, section), name)
        return value

    def origin(self, key: str) -> str:
        """Where the value came from: "default", "file PATH", "environment variable NAME" or "flag --NAME"."""
        return self.origins.get(key, "default")

    def explain(self) -> list[Explained]:
        return [
            Explained(spec.key, self.value(spec.key), self.origin(spec.key), spec.rule.description)
            for spec in SPECS.values()
        ]

    def to_toml(self) -> str:
        """A file that resolves to this configuration, with a comment over each key."""
        lines: list[str] = []
        for section in SECTIONS:
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
            for spec in SPECS.values():
                owner, _, name = spec.key.partition(".")
                if owner == section:
                    bounds = f" ({spec.bounds})" if spec.bounds else ""
                    lines.append(f"# {spec.rule.description}{bounds}")
                    lines.append(f"{name} = {toml_literal(self.value(spec.key))}")
        return "\n".join(lines) + "\n"

    def engine_settings(self, model_dir: str | Path) -> EngineSettings:
        """What the engine process is told; `model_dir` is the local folder that model.name resolved to."""
        return EngineSettings(
            model_dir=str(model_dir),
            model_name=self.model.name,
            device=self.engine.device,
            dtype=self.model.dtype,
            scheduler=self.engine.scheduler,
            max_model_len=self.model.max_model_len,
            max_num_seqs=self.engine.max_num_seqs,
            prefill_chunk_tokens=self.engine.prefill_chunk_tokens,
            step_token_budget=self.engine.step_token_budget,
            kv_bytes=self.kv.bytes,
            kv_fraction=self.kv.fraction,
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
            state_dir=self.partition.state_dir,
        )


SECTIONS: dict[str, type] = {
    "server": ServerConfig,
    "model": ModelConfig,
    "engine": EngineConfig,
    "kv": KvConfig,
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
    `conflicting_options`.
    """
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    layers = [_from_file(path) if path else {}, _from_environment(environ), _from_overrides(overrides)]
    for layer in layers:
        for key, (value, origin) in layer.items():
            values[key], origins[key] = value, origin
    sections = {name: record(**_of_section(values, name)) for name, record in SECTIONS.items()}
    return Config(**sections, origins=MappingProxyType(origins))


Layer = dict[str, tuple[Value, str]]
"""One source's values: key -> (value, origin)."""


def _of_section(values: Mapping[str, Value], section: str) -> dict[str, Value]:
    prefix = section + "."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _from_file(path: Path) -> Layer:
    origin = f"file {path}"
    layer: Layer = {}
    for section, table in _read_toml(path).items():
        if not isinstance(table, dict):
            raise _unknown(section, origin)
        for name, raw in table.items():
            spec = _spec(f"{section}.{name}", origin)
            layer[spec.key] = spec.check(raw, origin), origin
        if section not in SECTIONS:
            raise _unknown(section, origin)
    return layer


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SemipdError(
            "config_not_found",
            f"There is no configuration file {path}.",
            "Give --config an existing file, or leave it out to use the defaults.",
        ) from error
    except OSError as error:
        message = f"The configuration file {path} cannot be read: {error.strerror}."
        raise SemipdError("config_unreadable", message, "Check the path and its permissions.") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        message = f"The configuration file {path} is not valid TOML: {error}."
        hint = "semipd-daemon config prints a complete file to start from."
        raise SemipdError("config_unreadable", message, hint) from error


def _from_environment(environ: Mapping[str, str]) -> Layer:
    layer: Layer = {}
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX):
            origin = f"environment variable {variable}"
            key = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".", 1)
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
    spec = SPECS.get(key)
    if spec is None:
        raise _unknown(key, origin)
    return spec


def _unknown(key: str, origin: str, hint: str = "") -> SemipdError:
    near = nearest_key(key, SPECS)
    if not hint:
        hint = f"Did you mean {near}?" if near else f"Known sections: {', '.join(SECTIONS)}."
    return SemipdError("unknown_option", f"There is no option {key} ({origin}).", hint, param=key)
