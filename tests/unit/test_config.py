"""Configuration: three layers, origins, refusals, and the ready file."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd.config.config import SPECS, Config, Override, default_engine_settings, load_config
from semipd.config.schema import nearest_key, toml_literal
from semipd.config.sections import CudaConfig
from semipd.core.errors import SemipdError
from semipd.core.settings import CudaSettings, EngineSettings
from semipd.core.slo import NO_TARGETS, SLO_BOUNDS, Targets

DEFAULT_FILE = Path(__file__).parents[2] / "configs" / "default.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "semipd.toml"
    path.write_text(text)
    return path


def refusal(code: str, *args: object, **kwargs: object) -> SemipdError:
    with pytest.raises(SemipdError) as refused:
        load_config(*args, **kwargs)  # type: ignore[arg-type]
    assert refused.value.code == code
    return refused.value


def test_layers_override_in_order_and_remember_their_origin(tmp_path: Path) -> None:
    path = write(tmp_path, '[server]\nport = 1\nhost = "a"\nlog_level = "debug"\n[kv]\nfraction = 0.3\n')
    environ = {"SEMIPD__SERVER__PORT": "2", "SEMIPD__SERVER__HOST": "b", "SEMIPD_PORT": "tcp://10.0.0.1:80"}
    config = load_config(path, environ, [Override("server.port", "3", "--port")])
    assert (config.server.port, config.server.host, config.server.log_level) == (3, "b", "debug")
    assert config.kv.fraction == 0.3
    assert config.origin("server.port") == "flag --port"
    assert config.origin("server.host") == "environment variable SEMIPD__SERVER__HOST"
    assert config.origin("kv.fraction") == f"file {path}"
    assert config.origin("kv.bytes") == "default"


def test_nothing_given_is_all_defaults() -> None:
    config = load_config()
    assert config == Config()
    assert config.engine_settings("") == default_engine_settings()
    assert {entry.origin for entry in config.explain()} == {"default"}
    assert all(entry.description for entry in config.explain())


def test_every_setting_reaches_the_engine() -> None:
    """max_num_blocks is for tests only; every other field of EngineSettings has an option."""
    values = {
        "engine.device": "cuda",
        "engine.scheduler": "chunked",
        "engine.max_num_seqs": "3",
        "engine.prefill_chunk_tokens": "5",
        "engine.step_token_budget": "7",
        "engine.prefill_units": "2",
        "engine.sim_profile": "/profiles/x.json",
        "model.name": "x",
        "model.dtype": "float32",
        "model.max_model_len": "99",
        "kv.bytes": "1000000",
        "server.log_format": "json",
        "kv.fraction": "0.25",
        "engine.order": "cost",
        "admission.max_late_s": "5",
        "partition.mode": "fixed",
        "partition.policy": "paper",
        "partition.merge_tokens": "0",
        "partition.state_dir": "/state",
        "slo.ttft_ms": "400",
        "slo.tpot_ms": "20",
        "slo.percentile": "95",
        "slo.window_s": "10",
        "slo.ttft_ms_per_1k_tokens": "100",
        "slo.itl_ms": "40",
        "slo.itl_percentile": "95",
        "supervision.start_patience": "3",
        "supervision.worker_step_limit_s": "90",
        "cuda.sm_carveout": "true",
        "cuda.dependent_launch": "true",
    }
    config = load_config(overrides=[Override(key, text, "--set") for key, text in values.items()])
    settings = config.engine_settings(Path("/models/x"))
    assert settings.model_dir == "/models/x"
    for name in (field.name for field in dataclasses.fields(EngineSettings)):
        assert (getattr(settings, name) == getattr(default_engine_settings(), name)) == (
            name == "max_num_blocks"
        ), name


def test_what_only_a_gpu_can_do_is_refused_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path, "[cuda]\nsm_carveout = true\n")
    with pytest.raises(SemipdError, match=r"cuda\.sm_carveout = true .* is for the device cuda; .* is cpu"):
        load_config(path)
    assert load_config(path, {"SEMIPD__ENGINE__DEVICE": "cuda"}).engine_settings("").cuda.sm_carveout
    path = write(tmp_path, "[cuda]\nsm_carveout = false\n")
    assert not load_config(path).cuda.sm_carveout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('engine.scheduler = "chunked"', r"engine\.scheduler is chunked \(file .*, and must be semipd"),
        ("engine.prefill_chunk_tokens = 191", r"engine\.prefill_chunk_tokens is 191 .* must be at least 192"),
        ('cuda.prefill_attention = "sdpa"', r"cuda\.prefill_attention is sdpa .* must be triton"),
    ],
)
def test_prefill_graphs_that_no_step_would_fill_are_refused(tmp_path: Path, line: str, says: str) -> None:
    text = 'engine.device = "cuda"\ncuda.prefill_graphs = true\n{}\n'
    with pytest.raises(SemipdError, match=says):
        load_config(write(tmp_path, text.format(line)))
    assert load_config(write(tmp_path, text.format("engine.prefill_chunk_tokens = 192"))).cuda.prefill_graphs


def test_tma_needs_large_blocks(tmp_path: Path) -> None:
    text = '[engine]\ndevice = "cuda"\n[cuda]\ntma_loads = true\nkv_block_size = {}\n'
    with pytest.raises(SemipdError, match=r"cuda\.tma_loads .* blocks of 64 tokens; .*size is 16 \(file"):
        load_config(write(tmp_path, text.format(16)))
    assert load_config(write(tmp_path, text.format(64))).engine_settings("").cuda.tma_loads


def test_numbers_to_choose_from(tmp_path: Path) -> None:
    gpu = '[engine]\ndevice = "cuda"\n[cuda]\n'
    with pytest.raises(SemipdError, match=r"cuda\.kv_block_size must be one of 16, 64; got 32"):
        load_config(write(tmp_path, f"{gpu}kv_block_size = 32\n"))
    assert (
        load_config(write(tmp_path, f"{gpu}kv_block_size = 64\n")).engine_settings("").cuda.kv_block_size
        == 64
    )


def test_the_engine_hears_all_of_its_settings() -> None:
    defaults = default_engine_settings()
    settings = dataclasses.replace(defaults, cuda=dataclasses.replace(defaults.cuda, sm_carveout=True))
    assert EngineSettings.from_wire(settings.to_wire()) == settings
    assert [f.name for f in dataclasses.fields(CudaSettings)] == [
        f.name for f in dataclasses.fields(CudaConfig)
    ]


def test_ready_file_is_complete_and_holds_the_defaults() -> None:
    text = DEFAULT_FILE.read_text()
    assert text == Config().to_toml(), "write it again: semipd-daemon config > configs/default.toml"
    parsed = tomllib.loads(text)
    assert {f"{section}.{name}" for section, table in parsed.items() for name in table} == set(SPECS)
    from_file = load_config(DEFAULT_FILE)
    assert dataclasses.replace(from_file, origins={}) == dataclasses.replace(Config(), origins={})


@given(st.text())
def test_strings_survive_the_written_file(value: str) -> None:
    assert tomllib.loads(f"key = {toml_literal(value)}") == {"key": value}


def test_a_written_configuration_resolves_to_itself(tmp_path: Path) -> None:
    overrides = [
        Override("model.name", 'odd "name"\n\\', "--model"),
        Override("kv.fraction", "1e-2", "--set"),
    ]
    config = load_config(overrides=overrides)
    again = load_config(write(tmp_path, config.to_toml()))
    assert again.model == config.model
    assert again.kv == config.kv


@pytest.mark.parametrize(
    ("key", "raw", "said"),
    [
        ("engine.max_num_seqs", "0", "1 to 65536"),
        ("engine.max_num_seqs", "-4", "1 to 65536"),
        ("engine.max_num_seqs", "true", "whole number"),
        ("engine.max_num_seqs", "2.0", "whole number"),
        ("engine.max_num_seqs", '"64"', "whole number"),
        ("server.port", "65536", "0 to 65535"),
        ("server.port", "-1", "0 to 65535"),
        ("server.host", '""', "not empty"),
        ("server.host", "8", "a string"),
        ("model.max_model_len", "-1", "0 to"),
        ("model.dtype", '"bf16"', "bfloat16"),
        ("engine.device", '"tpu"', "cpu"),
        ("kv.fraction", "-0.1", "0.0 to 0.95"),
        ("kv.fraction", "nan", "0.0 to 0.95"),
        ("kv.fraction", "1" + "0" * 400, "a number"),
        ("kv.bytes", "[1]", "whole number"),
        ("server.log_prompts", "1", "true or false"),
        ("server.log_prompts", '"true"', "true or false"),
    ],
)
def test_bad_values_in_a_file(tmp_path: Path, key: str, raw: str, said: str) -> None:
    section, _, name = key.partition(".")
    path = write(tmp_path, f"[{section}]\n{name} = {raw}\n")
    error = refusal("invalid_config", path)
    assert error.param == key
    assert key in error.message
    assert said in error.message
    assert f"file {path}" in error.message


@pytest.mark.parametrize("text", ["", "x", "1.5", "0", "999999999999"])
def test_bad_values_as_text(text: str) -> None:
    error = refusal("invalid_config", None, {"SEMIPD__ENGINE__MAX_NUM_SEQS": text})
    assert "environment variable SEMIPD__ENGINE__MAX_NUM_SEQS" in error.message
    assert repr(text) in error.message or text in error.message
    assert (
        "flag --set" in refusal("invalid_config", overrides=[Override("server.port", "x", "--set")]).message
    )


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("[server]\nprot = 1", "server.port"),
        ("[engine]\nmax_model_len = 1", "model.max_model_len"),
        ("[sever]\nport = 1", "server.port"),
        ("port = 1", "server.port"),
        ("[engine]\nmax_num_seq = 1", "engine.max_num_seqs"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, text: str, near: str) -> None:
    assert near in refusal("unknown_option", write(tmp_path, text)).hint


def test_unknown_variables_and_flags() -> None:
    assert "server.port" in refusal("unknown_option", None, {"SEMIPD__SERVER__PROT": "1"}).hint
    assert "SEMIPD__SERVER__PORT" in refusal("unknown_option", None, {"SEMIPD__server__port": "1"}).hint
    assert "kv.fraction" in refusal("unknown_option", overrides=[Override("kv.fracton", "1", "--set")]).hint
    assert refusal("unknown_option", None, {"SEMIPD__": "1"}).hint
    assert nearest_key("zzz", SPECS) is None


def test_switches_are_true_or_false(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "[server]\nlog_prompts = true")).server.log_prompts is True
    for text, value in (("true", True), ("false", False)):
        assert load_config(environ={"SEMIPD__SERVER__LOG_PROMPTS": text}).server.log_prompts is value
    assert "true or false" in refusal("invalid_config", None, {"SEMIPD__SERVER__LOG_PROMPTS": "1"}).message


def test_unknown_empty_section(tmp_path: Path) -> None:
    assert "sections" in refusal("unknown_option", write(tmp_path, "[zzzz]\n")).hint


def test_one_option_given_twice() -> None:
    overrides = [Override("server.port", "1", "--port"), Override("server.port", "2", "--set")]
    assert "--port" in refusal("conflicting_options", overrides=overrides).message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert str(tmp_path / "no.toml") in refusal("config_not_found", tmp_path / "no.toml").message
    refusal("config_unreadable", tmp_path)
    assert "line 1" in refusal("config_unreadable", write(tmp_path, "port == 1")).message
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    refusal("config_unreadable", path)


def test_targets_have_the_same_bounds_at_the_start_and_later() -> None:
    rules = {key.removeprefix("slo."): spec.rule for key, spec in SPECS.items() if key.startswith("slo.")}
    assert {name: (rule.minimum, rule.maximum, False) for name, rule in rules.items()} == SLO_BOUNDS


def test_configuration_is_frozen() -> None:
    config = load_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.origins["server.port"] = "me"  # type: ignore[index]


def test_socket_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(load_config(overrides=[Override("server.socket", "/x/y", "--socket")]).socket_path) == "/x/y"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert load_config().socket_path == tmp_path / "semipd" / "daemon.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert load_config().socket_path.is_absolute()
    assert not (tmp_path / "semipd").exists(), "resolving the configuration creates nothing"


CLASSES = """
[auth]
keys_file = "keys"
[classes.chat]
ttft_ms = 300
itl_ms = 40.5
default_keys = "ann, bob"
[classes.code-review]
allowed_keys = "eve"
[classes.bulk]
"""


def test_classes_are_tables(tmp_path: Path) -> None:
    path = write(tmp_path, CLASSES)
    config = load_config(
        path,
        {"SEMIPD__CLASSES__CHAT__TPOT_MS": "25"},
        [Override("classes.chat.ttft_ms_per_1k_tokens", "50", "--set")],
    )
    assert list(config.classes) == ["batch", "chat", "code-review", "bulk"]
    assert config.classes["chat"].targets == Targets(300, 50, 25, 40.5)
    assert config.classes["batch"].targets == config.classes["bulk"].targets == NO_TARGETS
    assert config.classes["chat"].allowed_for == frozenset()
    assert config.classes["code-review"].allowed_for == {"eve"}
    assert config.origin("classes.chat.tpot_ms") == "environment variable SEMIPD__CLASSES__CHAT__TPOT_MS"
    explained = {entry.key: entry.value for entry in config.explain()}
    assert (explained["classes.chat.ttft_ms"], explained["classes.bulk.ttft_ms"]) == (300, 0)
    again = load_config(write(tmp_path, config.to_toml()))
    assert again.classes == config.classes


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[classes.chat]\nttft_ms = -1", "invalid_config", "0.0 to 1000000000.0"),
        ('[classes.chat]\ntpot_ms = "x"', "invalid_config", "classes.chat.tpot_ms must be a number"),
        ("[classes.chat]\nttft = 1", "unknown_option", "no option ttft of a class"),
        ("[classes.Chat]\nttft_ms = 1", "invalid_config", "'Chat' is no name of a class"),
        ("[classes.a.b]\nttft_ms = 1", "unknown_option", "no option b of a class"),
        ("[classes.default]\nttft_ms = 1", "invalid_config", "from the section [slo]"),
        ("[classes]\nttft_ms = 1", "unknown_option", "classes.ttft_ms"),
        ("classes = 1", "unknown_option", "classes"),
        ("[classes.chat]\nttft_ms_per_1k_tokens = 9", "invalid_config", "classes.chat.ttft_ms, which is 0"),
        ('[classes.chat]\nallowed_keys = "ann"', "conflicting_options", "neither auth.keys_file nor"),
        (
            '[classes.a]\ndefault_keys = "ann"\n[classes.b]\ndefault_keys = "ann"',
            "invalid_config",
            "two classes by default: a and b",
        ),
        ("".join(f"[classes.c{idx}]\n" for idx in range(33)), "invalid_config", "there can be 32"),
    ],
)
def test_classes_that_cannot_be(tmp_path: Path, text: str, code: str, said: str) -> None:
    error = refusal(code, write(tmp_path, text + "\n"))
    assert said in error.message
    assert error.hint
