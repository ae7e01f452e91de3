"""Numbers at the edges of every type, through every door; keys with two spellings; what leaves no token."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.byte_model import ByteModel
from support.daemon import Running, running
from support.daemon_process import scripted_process
from support.scripted_engine import VOCAB_SIZE

from semipd.client import AsyncClient
from semipd.config.config import default_engine_settings, load_config
from semipd.core.errors import SemipdError
from semipd.core.sampling import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_LOGIT_BIASES,
    MAX_STOP_TOKEN_IDS,
    RANGES,
    SMALLEST,
)
from semipd.core.slo import SLO_BOUNDS

DEMO = Path(__file__).parents[2] / "semipd" / "checkpoints" / "demo"
HUGE = "9" * 400
UNREADABLE = "9" * 5000


async def post_text(
    daemon: Running, fields: str, path: str = "/v1/completions"
) -> tuple[int, dict[str, Any]]:
    """A good body with more fields, as JSON text: not every number has a Python value."""
    good = (
        '"prompt":[97],"messages":[{"role":"user","content":"a"}]'
        if path.startswith("/v1/c")
        else '"reason":""'
    )
    status, answer, _ = await daemon.post(f'{{"max_tokens":2,{good},{fields}}}'.encode(), path)
    return status, answer


async def nothing_is_left(daemon: Running) -> None:
    await daemon.engine_says(lambda seen: seen["live"] == 0)
    assert len(daemon.services.table) == 0
    assert daemon.services.table.num_held == 0
    assert daemon.services.admission.waiting == (0, 0)
    daemon.services.admission.check_integrity()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_top_k_beyond_the_vocabulary_is_off_however_large(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as daemon:
        for text in (
            "1e30",
            "2147483648",
            "9223372036854775808",
            str(2**64),
            "1e308",
            HUGE,
            "-1",
            "-0.0",
            "400",
        ):
            status, answer = await post_text(daemon, f'"top_k":{text}', path)
            assert status == 200, answer
        status, _ = await post_text(daemon, '"top_k":399', path)
        seen = await daemon.engine()
        await nothing_is_left(daemon)
    assert [entry["top_k"] for entry in seen["submitted"]] == [0] * 9 + [399]


BAD = [
    ("top_k", ["-2", "1e400", "1.5", "true", '"1"', '"nan"', "NaN"]),
    ("max_tokens", ["-1", "1e30", str(2**31), str(2**64), HUGE, "0.5", "false", "1e-320"]),
    ("min_tokens", ["-1", "3", "1e30", str(2**63), HUGE]),
    ("temperature", ["-1e-320", "100.1", "1e400", str(2**63), HUGE, "NaN", "Infinity", '"0.5"', "true"]),
    ("top_p", ["0", "-0.0", "1.0000001", "1e300", "NaN"]),
    ("min_p", ["-1e-300", "1.1", HUGE]),
    ("repetition_penalty", ["1e-300", "0", "0.0099", "100.5", "1e300", "-1", "Infinity", HUGE]),
    ("presence_penalty", ["-2.1", "2.1", "1e38"]),
    ("frequency_penalty", ["-1e38", "3", HUGE]),
    ("seed", [str(2**64), str(-(2**63) - 1), "1e30", HUGE, "0.5"]),
    ("timeout_ms", ["0", str(2**31), "1e30", HUGE]),
    ("cache_salt", ['"' + "x" * 1025 + '"']),
    ("n", ["0", "129", "1e30", HUGE, "-1"]),
    ("prompt_logprobs", ["-2", "21", "1e30", HUGE]),
    ("logit_bias", ['{"5":100.1}', '{"5":1e400}', '{"5":NaN}', '{"5":true}', '{"400":1}', f'{{"{HUGE}":1}}']),
    ("stop_token_ids", ["[400]", "[-1]", f"[{2**64}]", f"[{HUGE}]", "[1.5]", "[true]"]),
    ("allowed_token_ids", ["[400]", "[-1]", f"[{2**64}]", f"[{HUGE}]", '["5"]']),
]  # fmt: skip


async def test_a_number_out_of_its_range_is_a_bad_request_that_names_the_field(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for path in ("/v1/completions", "/v1/chat/completions"):
            for name, texts in BAD:
                for text in texts:
                    status, answer = await post_text(daemon, f'"{name}":{text}', path)
                    error = answer["error"]
                    assert (status, error["param"]) == (400, name), (name, text, answer)
                    assert len(error["message"]) < 400, (name, text)
                status, answer = await post_text(daemon, f'"{name}":{UNREADABLE}', path)
                assert (status, answer["error"]["code"]) == (400, "malformed_json")
        await nothing_is_left(daemon)
        assert (await daemon.engine())["submitted"] == []


@pytest.mark.parametrize(
    ("method", "path", "name", "texts"),
    [
        ("PUT", "/v1/partition", "prefill_units", ["-1", "1e30", str(2**64), HUGE, "true"]),
        ("PUT", "/v1/partition", "expires_s", ["0", "-0.0", "1e400", "1e30", "NaN", HUGE, str(2**63)]),
        *[
            (
                "PATCH",
                "/v1/slo",
                name,
                ["-1", "1e300", "NaN", "Infinity", HUGE, str(2**64), "true", *["0"] * (bounds.low > 0)],
            )
            for name, bounds in SLO_BOUNDS.items()
        ],
        ("POST", "/v1/drain", "limit_s", ["-1", "86401", "1e400", "NaN", HUGE]),
    ],
)
async def test_operators_numbers_have_ranges_too(
    tmp_path: Path, method: str, path: str, name: str, texts: list[str]
) -> None:
    async with running(tmp_path) as daemon:
        for text in texts:
            body = f'{{"{name}":{text}}}'
            headers = {"Content-Type": "application/json"}
            async with daemon.http.request(method, daemon.url + path, data=body, headers=headers) as response:
                answer = await response.json()
            assert (response.status, answer["error"]["param"]) == (400, name), (text, answer)
        assert daemon.services.drain.state == "serving"


async def test_numbers_in_addresses_are_numbers_too(tmp_path: Path) -> None:
    limits = ["0", "-1", "+5", "05", " 5", "٣", "1e2", "1025", "0000000019999", "000000001" + UNREADABLE]
    after = [f"1-{UNREADABLE}", f"{UNREADABLE}-1", "١-١", "1", "-", "1-1-1", "+1-1", " 1-1"]
    async with running(tmp_path) as daemon:
        for path, query in [("/v1/requests", {"limit": text}) for text in limits] + [
            ("/v1/events", {"after": text}) for text in after
        ]:
            async with daemon.http.get(daemon.url + path, params=query) as response:
                assert response.status == 400, (path, query)
        async with await AsyncClient.connect(daemon.socket_path) as client:
            for text in after:
                with pytest.raises(SemipdError) as refused:
                    await anext(client.subscribe(after=text, events=True))
                assert refused.value.code == "invalid_value", text


async def test_the_same_ranges_hold_on_the_socket(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    wrong: list[tuple[str, Any]] = [
        ("top_k", -2), ("top_k", inf), ("top_k", True), ("max_tokens", 2**31), ("max_tokens", 2**64 - 1),
        ("max_tokens", 1e30), ("max_tokens", 0), ("temperature", nan), ("temperature", inf),
        ("repetition_penalty", 1e-300), ("repetition_penalty", 1e300), ("top_p", 0.0), ("seed", 1e30),
        ("seed", b"1"), ("min_tokens", 2**63), ("logit_bias", {" 5": 1.0}), ("logit_bias", {"5": nan}),
        ("logit_bias", {b"5": 1.0}), ("stop_token_ids", [2**64 - 1]), ("allowed_token_ids", [VOCAB_SIZE]),
        ("timeout_ms", 2**63),
    ]  # fmt: skip
    async with running(tmp_path) as daemon, await AsyncClient.connect(daemon.socket_path) as client:
        for name, value in wrong:
            with pytest.raises(SemipdError) as refused:
                await anext(client.generate([97], **{"max_tokens": 2, name: value}))
            assert (refused.value.code, refused.value.param) == ("invalid_value", name), (name, value)
        for top_k in (1e30, 2**64 - 1, 2**63, -1):
            assert [item.token_ids async for item in client.generate([97], max_tokens=2, top_k=top_k)]
        with pytest.raises(SemipdError) as unsent:
            client.generate([97], max_tokens=2**64)
        assert unsent.value.code == "cannot_be_sent", "msgpack has no such number"
        assert [item async for item in client.generate([97], max_tokens=1)], "the connection goes on"
        await nothing_is_left(daemon)


def test_numbers_on_command_lines(tmp_path: Path) -> None:
    """One line of error, whoever finds the number wrong: the parser, msgpack or the daemon."""
    long = "9" * 30
    with scripted_process(tmp_path) as daemon:
        for run, arguments in [
            (daemon.client, ["generate", "a", "--max-tokens", long]),
            (daemon.client, ["generate", "a", "--top-k", "-" + long]),
            (daemon.client, ["generate", "a", "--seed", UNREADABLE]),
            (daemon.client, ["generate", "a", "--temperature", "nan"]),
            (daemon.command, ["partition", "set", "--prefill", long]),
            (daemon.command, ["partition", "set", "--prefill", "1", "--for", HUGE]),
            (daemon.command, ["slo", "--ttft-ms", "inf"]),
            (daemon.command, ["drain", "--within", HUGE + "d"]),
        ]:
            done = run(*arguments)
            assert done.returncode in (1, 2), (arguments, done)
            assert "Traceback" not in done.stderr
            assert "error" in done.stderr
        assert daemon.client("generate", "a", "--max-tokens", "1", "--top-k", str(2**62)).returncode == 0


@pytest.mark.parametrize("text", ["99999999999999999999999", "0x" + "f" * 9000, "1e30", "nan", "-1", "true"])
def test_numbers_in_configuration_files(tmp_path: Path, text: str) -> None:
    for key in ("max_waiting_requests", "max_request_share", "timeout_ms"):
        path = tmp_path / "semipd.toml"
        path.write_text(f"[admission]\n{key} = {text}\n")
        with pytest.raises(SemipdError) as refused:
            load_config(path)
        assert (refused.value.code, refused.value.param) == ("invalid_config", f"admission.{key}")
        assert len(str(refused.value)) < 700


async def test_what_would_be_zero_to_the_sampler_is_its_smallest_number(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for fields in ('"temperature":1e-320', '"temperature":1e-40,"top_p":5e-324', '"temperature":-0.0'):
            status, answer = await post_text(daemon, fields)
            assert status == 200, answer
        seen = [entry["temperature"] for entry in (await daemon.engine())["submitted"]]
    assert seen == [SMALLEST, SMALLEST, 0.0]


def test_the_published_schema_shows_the_ranges() -> None:
    from semipd.daemon.servers.routes import ROUTES
    from semipd.daemon.web.openapi import document

    schemas = json.loads(json.dumps(document(ROUTES, "0")))["components"]["schemas"]
    for body in ("CompletionRequest", "ChatCompletionRequest"):
        for name, limits in RANGES.items():
            shown = json.dumps(schemas[body]["properties"].get(name, ""))
            if name in ("max_tokens", "top_k", "seed", "prompt_logprobs") or (
                name == "logprobs" and body.startswith("Chat")
            ):
                continue  # what a client may say is wider: nothing, off, a negative seed, everything, yes
            low = "exclusiveMinimum" if limits.above_low else "minimum"
            assert f'"{low}": {json.dumps(limits.low)}' in shown, (body, name, shown)
            assert f'"maximum": {json.dumps(limits.high)}' in shown, (body, name, shown)
        bias = json.dumps(schemas[body]["properties"]["logit_bias"])
        assert f'"maxProperties": {MAX_LOGIT_BIASES}' in bias
        assert '{"^(0|[1-9][0-9]{0,9})$": {"maximum": 100, "minimum": -100' in bias
    for name, limits in SLO_BOUNDS.items():
        shown = json.dumps(schemas["SloUpdate"]["properties"][name])
        assert f'"maximum": {json.dumps(limits.high)}' in shown


ALIASES = [
    " 5",
    "5 ",
    "05",
    "+5",
    "-5",
    "5_0",
    "5.0",
    "5e0",
    "0x5",
    "٥",
    "５",
    "",
    "5\n",
    "\u00a05",
    "²",
    "5\x00",
]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_token_has_one_spelling_as_a_key(tmp_path: Path, path: str) -> None:
    async with running(tmp_path) as daemon:
        for alias in ALIASES:
            bias = json.dumps({"5": 60, alias: 60})
            status, answer = await post_text(daemon, f'"logit_bias":{bias}', path)
            assert (status, answer["error"]["param"]) == (400, "logit_bias"), alias
            assert repr(alias)[:20] in answer["error"]["message"], answer
        status, _ = await post_text(daemon, '"logit_bias":{"5":1,"0":2,"399":-100,"5":3}', path)
        assert status == 200
        seen = (await daemon.engine())["submitted"][-1]["logit_bias"]
    assert seen == [[5, 3.0], [0, 2.0], [399, -100.0]], "of a key given twice the last counts, as in any JSON"


async def test_maps_and_lists_of_tokens_are_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"server.max_body_bytes": 8 * 2**20}) as daemon:
        for name, most, text in (
            ("logit_bias", MAX_LOGIT_BIASES, ",".join(f'"x{key}":"y"' for key in range(30_000))),
            ("stop_token_ids", MAX_STOP_TOKEN_IDS, ",".join(["5"] * 200_000)),
            ("allowed_token_ids", MAX_ALLOWED_TOKEN_IDS, ",".join(["5"] * 200_000)),
        ):
            value = f"{{{text}}}" if name == "logit_bias" else f"[{text}]"
            status, answer = await post_text(daemon, f'"{name}":{value}')
            assert (status, answer["error"]["param"]) == (400, name)
            assert f"at most {most} entries" in answer["error"]["message"]
        status, answer = await post_text(
            daemon, f'"stop_token_ids":{[5, 5, 6] * 300},"allowed_token_ids":[7,7]'
        )
        assert status == 200, answer
        seen = (await daemon.engine())["submitted"][-1]["stop_token_ids"]
    assert seen[:2] == [5, 6]
    assert len(seen) == 2 + len(ByteModel().eos_token_ids)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ('"min_tokens":1,"allowed_token_ids":[5,6],"stop_token_ids":[6,5,7]', False),
        ('"min_tokens":1,"allowed_token_ids":[5,6],"stop_token_ids":[6,7]', True),
        ('"min_tokens":0,"allowed_token_ids":[5,6],"stop_token_ids":[5,6]', True),
        (f'"min_tokens":2,"stop_token_ids":{list(range(VOCAB_SIZE))}', False),
        (f'"min_tokens":2,"ignore_eos":true,"stop_token_ids":{list(range(1, VOCAB_SIZE))}', True),
        (f'"stop_token_ids":{list(range(VOCAB_SIZE))}', True),
        ('"allowed_token_ids":[]', False),
        ('"min_tokens":3', False),
    ],
)
async def test_a_combination_that_leaves_no_token_is_refused(tmp_path: Path, fields: str, left: bool) -> None:
    async with running(tmp_path) as daemon:
        status, answer = await post_text(daemon, fields)
        await nothing_is_left(daemon)
    assert status == (200 if left else 400), answer
    if not left:
        assert answer["error"]["param"] == ("min_tokens" if "min_tokens" in fields else "allowed_token_ids")


@pytest.mark.soak  # the refusals are tested above, on a device that does not compute
async def test_poisoned_parameters_do_not_touch_the_engine(tmp_path: Path) -> None:
    """On a device that computes: what used to make logits invalid is refused, and its neighbour answers."""
    cpu = default_engine_settings(device="cpu", model_dir=str(DEMO), max_model_len=128, kv_bytes=2**22)
    async with running(tmp_path, fake=cpu) as daemon:
        neighbour = asyncio.create_task(daemon.complete(prompt=[5] * 8, max_tokens=60, ignore_eos=True))
        poison: list[dict[str, Any]] = [
            {"repetition_penalty": value} for value in (1e-300, 1e-39, 1e-3, 1e3, 3.5e38, 1e300)
        ]
        poison += [{"temperature": 1e308}, {"logit_bias": {"5": 1e38}}, {"frequency_penalty": -1e38}]
        for fields in poison:
            status, answer, _ = await daemon.post({"prompt": [5, 5, 6], "max_tokens": 4, **fields})
            assert status == 400, (fields, answer)
        edges: list[dict[str, Any]] = [
            {"repetition_penalty": 0.01, "temperature": 1e-320},
            {"repetition_penalty": 100.0},
        ]
        edges += [
            {"top_p": 1e-320},
            {"logit_bias": {"5": 100}, "presence_penalty": -2, "frequency_penalty": 2},
        ]
        for fields in edges:
            status, answer, _ = await daemon.post({"prompt": [5, 5, 6], "max_tokens": 4, **fields})
            assert status == 200, (fields, answer)
        assert len((await neighbour)["choices"]) == 1
        assert daemon.services.supervisor.num_restarts == 0
        assert daemon.services.history.engine_deaths == 0
