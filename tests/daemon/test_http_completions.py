"""POST /v1/completions over a real server; the engine echoes the prompt's bytes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.byte_model import BOS, EOS, ByteModel
from support.daemon import MAX_BODY_BYTES, Running, running


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["choices"][0]["text"] for event in events if event["choices"])


async def test_whole_answer(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        answer = await daemon.complete(model="bytes", prompt=list(b"abc"), max_tokens=7)
    assert answer["object"] == "text_completion"
    assert answer["model"] == "bytes"
    choice = {"index": 0, "text": "abcabca", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    assert answer["choices"] == [choice]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 7,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 16},
    }


async def test_text_prompt_is_tokenized_and_16_tokens_are_the_default(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        answer = await daemon.complete(prompt="héllo")
        plain = await daemon.complete(prompt="abc", add_special_tokens=False, max_tokens=2)
        seen = await daemon.engine()
    assert answer["usage"]["completion_tokens"] == 16
    assert plain["choices"][0]["text"] == "ab"
    assert [entry["prompt"] for entry in seen["submitted"]] == [[BOS, *"héllo".encode()], list(b"abc")]


async def test_stream_is_the_whole_answer_in_pieces(tmp_path: Path) -> None:
    body = {"prompt": list("añ🎈".encode()), "max_tokens": 21}
    async with running(tmp_path) as daemon:
        whole = await daemon.complete(**body)
        events = await daemon.stream(**body)
    assert text_of(events) == whole["choices"][0]["text"] == "añ🎈" * 3
    assert all("\ufffd" not in event["choices"][0]["text"] for event in events)
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert len({event["id"] for event in events}) == 1
    assert all("usage" not in event for event in events)


async def test_usage_in_streams(tmp_path: Path) -> None:
    body: dict[str, Any] = {"prompt": [97], "max_tokens": 3}
    async with running(tmp_path) as daemon:
        last_only = await daemon.stream(**body, stream_options={"include_usage": True})
        always = await daemon.stream(**body, stream_options={"continuous_usage_stats": True})
    assert last_only[-1]["choices"] == []
    assert last_only[-1]["usage"]["completion_tokens"] == 3
    assert all(event["usage"] is None for event in last_only[:-1])
    assert [event["usage"]["completion_tokens"] for event in always][-1] == 3
    assert all(event["choices"] for event in always)


async def test_stop_string_across_tokens_ends_the_engines_work(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        body = {"prompt": list(b"one two "), "max_tokens": 1000, "stop": ["e tw", "zzz"]}
        answer = await daemon.complete(**body)
        events = await daemon.stream(**body)
        seen = await daemon.engine_says(lambda status: status["live"] == 0)
    assert answer["choices"][0]["text"] == text_of(events) == "on"
    assert answer["choices"][0]["finish_reason"] == events[-1]["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 6
    assert seen["cancelled"] == [1, 2]


async def test_stop_tokens(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        eos = await daemon.complete(prompt=[97, EOS], max_tokens=9)
        through = await daemon.complete(prompt=[97, EOS], max_tokens=9, ignore_eos=True)
        own = await daemon.complete(prompt=list(b"abc"), max_tokens=9, stop_token_ids=[ord("c")])
        late = await daemon.complete(
            prompt=list(b"abc"), max_tokens=9, stop_token_ids=[ord("c")], min_tokens=5
        )
        events = await daemon.stream(prompt=list(b"abc"), max_tokens=9, stop_token_ids=[ord("c")])
    assert (eos["choices"][0]["text"], eos["choices"][0]["finish_reason"]) == ("a", "stop")
    assert eos["usage"]["completion_tokens"] == 2
    assert (through["choices"][0]["text"], through["choices"][0]["finish_reason"]) == ("aaaaa", "length")
    assert own["choices"][0]["text"] == text_of(events) == "ab"
    assert late["choices"][0]["text"] == "abcab"


async def test_sampling_fields_reach_the_engine(tmp_path: Path) -> None:
    model = ByteModel(sampling_defaults={"temperature": 0.25, "top_k": 7})
    async with running(tmp_path, model) as daemon:
        await daemon.complete(prompt=[97], seed=2**64 - 1, top_k=-1, logit_bias={"5": -1.5}, cache_salt="s")
        await daemon.complete(prompt=[97], seed=-1, temperature=None, top_k=None, stop=None, max_tokens=None)
        await daemon.complete(prompt=[97], temperature=0)
        first, second, third = (await daemon.engine())["submitted"]
    assert (first["seed"], first["top_k"], first["temperature"]) == (2**64 - 1, 0, 0.25)
    assert (first["logit_bias"], first["namespace"]) == ([[5, -1.5]], "bytes\0\0s")
    assert (second["seed"], second["top_k"], second["temperature"]) == (2**64 - 1, 7, 0.25)
    assert second["max_tokens"] == 16
    assert second["stop_token_ids"] == [EOS]
    assert third["temperature"] == 0
    assert 0 <= third["seed"] < 2**64


async def test_requests_without_a_seed_differ(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for _ in range(4):
            await daemon.complete(prompt=[97], max_tokens=1)
        seeds = {entry["seed"] for entry in (await daemon.engine())["submitted"]}
    assert len(seeds) == 4


async def test_max_tokens_that_fill_the_context(tmp_path: Path) -> None:
    async with running(tmp_path, step_ms=0) as daemon:
        exact = await daemon.complete(prompt=[97] * 4000, max_tokens=96)
        default = await daemon.complete(prompt=[97] * 4090)
    assert exact["usage"]["completion_tokens"] == 96
    assert default["usage"]["completion_tokens"] == 6


BAD_BODIES: list[tuple[Any, int, str, str | None]] = [
    (b"{", 400, "malformed_json", None),
    (b"", 400, "malformed_json", None),
    (b"[1]", 400, "invalid_value", None),
    (b'{"prompt": "\xff"}', 400, "malformed_json", None),
    (b"[" * 50_000, 400, "malformed_json", None),
    ({}, 400, "missing_field", "prompt"),
    ({"prompt": None}, 400, "invalid_value", "prompt"),
    ({"prompt": []}, 400, "empty_prompt", "prompt"),
    ({"prompt": [1, -1]}, 400, "invalid_value", "prompt"),
    ({"prompt": [1, 400]}, 400, "invalid_value", "prompt"),
    ({"prompt": [2**70]}, 400, "invalid_value", "prompt"),
    ({"prompt": [1, "a"]}, 400, "invalid_value", "prompt"),
    ({"prompt": ["a", 1]}, 400, "invalid_value", "prompt"),
    ({"prompt": [["a"]]}, 400, "invalid_value", "prompt"),
    ({"prompt": [[97], []]}, 400, "empty_prompt", "prompt"),
    ({"prompt": [[97], [400]]}, 400, "invalid_value", "prompt"),
    ({"prompt": [[97]] * 33, "n": 128}, 400, "invalid_value", "n"),
    ({"prompt": "a", "n": 0}, 400, "invalid_value", "n"),
    ({"prompt": "a", "n": 129}, 400, "invalid_value", "n"),
    ({"prompt": "a", "best_of": 3}, 400, "unsupported_value", "best_of"),
    ({"prompt": "a", "n": 3, "best_of": 2}, 400, "unsupported_value", "best_of"),
    ({"prompt": "a", "logprobs": 21}, 400, "invalid_value", "logprobs"),
    ({"prompt": "a", "logprobs": True}, 400, "invalid_value", "logprobs"),
    ({"prompt": "a", "prompt_logprobs": -2}, 400, "invalid_value", "prompt_logprobs"),
    (
        {"prompt": "a", "max_tokens": 4, "max_completion_tokens": 5},
        400,
        "invalid_value",
        "max_completion_tokens",
    ),
    (
        {"prompt": "a", "response_format": {"type": "json_object"}},
        400,
        "unsupported_value",
        "response_format",
    ),
    ({"prompt": "a", "guided_json": {}}, 400, "unsupported_value", "guided_json"),
    ({"prompt": "a", "suffix": "x"}, 400, "unsupported_value", "suffix"),
    ({"prompt": "a", "model": "other"}, 404, "model_not_found", "model"),
    ({"prompt": "a", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ({"prompt": "a", "max_tokens": -5}, 400, "invalid_value", "max_tokens"),
    ({"prompt": "a", "max_tokens": 4095}, 400, "context_length_exceeded", "max_tokens"),
    ({"prompt": [97] * 4096}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": "a", "temperature": -1}, 400, "invalid_value", "temperature"),
    ({"prompt": "a", "temperature": "1"}, 400, "invalid_value", "temperature"),
    (b'{"prompt": "a", "temperature": NaN}', 400, "invalid_value", "temperature"),
    ({"prompt": "a", "top_p": 0}, 400, "invalid_value", "top_p"),
    ({"prompt": "a", "seed": 2**64}, 400, "invalid_value", "seed"),
    ({"prompt": "a", "min_tokens": 17}, 400, "invalid_value", "min_tokens"),
    ({"prompt": "a", "stop": [""]}, 400, "invalid_value", "stop"),
    ({"prompt": "a", "stop_token_ids": [400]}, 400, "invalid_value", "stop_token_ids"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias"),
    ({"prompt": "a", "logit_bias": {"400": 1}}, 400, "invalid_value", "logit_bias"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, 400, "invalid_value", "stream_options"),
    (b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}', 413, "body_too_large", None),
]


async def test_bad_bodies_are_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for body, status, code, param in BAD_BODIES:
            got_status, answer, response = await daemon.post(body)
            assert (got_status, answer["error"]["code"]) == (status, code), (body, answer)
            assert answer["error"]["param"] == param, (body, answer)
            assert set(answer["error"]) == {"message", "type", "param", "code"}
            assert response.headers["X-Request-ID"]
        assert (await daemon.engine())["submitted"] == []
        assert (await daemon.complete(prompt="a"))["choices"]


async def test_refusals_name_the_numbers(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        _, answer, _ = await daemon.post({"prompt": [97] * 4000, "max_tokens": 97})
        _, wrong, _ = await daemon.post({"prompt": "a", "model": "other"})
    assert "4000" in answer["error"]["message"]
    assert "4096" in answer["error"]["message"]
    assert "Lower max_tokens to 96" in answer["error"]["message"]
    assert "'bytes'" in wrong["error"]["message"]


async def test_content_type_and_host_are_checked(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        plain, answer, _ = await daemon.post({"prompt": "a"}, **{"Content-Type": "text/plain"})
        assert (plain, answer["error"]["code"]) == (415, "unsupported_media_type")
        foreign, answer, _ = await daemon.post({"prompt": "a"}, Host="evil.example:80")
        assert (foreign, answer["error"]["code"]) == (403, "host_not_allowed")
        charset, _, _ = await daemon.post(
            {"prompt": "a"}, **{"Content-Type": "application/json; charset=utf-8"}
        )
        assert charset == 200
        for host in ("localhost:1", "127.0.0.1", "[::1]:8808", "LOCALHOST"):
            assert (await daemon.post({"prompt": "a"}, Host=host))[0] == 200


async def test_unknown_fields_are_ignored_and_counted(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.complete(prompt="a", n=1, best_of=1, echo=False, logprobs=None, user="u", surprise=1)
        await daemon.complete(prompt="a", surprise={"deep": [1]})
        status = await daemon.services.status()
    assert status["ignored_fields"] == {"surprise": 2}


async def test_request_id_is_kept_or_made(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        _, answer, response = await daemon.post({"prompt": "a"}, **{"X-Request-ID": "mine-1"})
        assert response.headers["X-Request-ID"] == "mine-1"
        assert answer["id"] == "cmpl-mine-1"
        _, _, response = await daemon.post({"prompt": "a"}, **{"X-Request-ID": "two words"})
        assert " " not in response.headers["X-Request-ID"]


async def test_routes_that_do_not_exist(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        for method, path, status, code in [
            ("GET", "/nowhere", 404, "not_found"),
            ("POST", "/v1/nowhere", 404, "not_found"),
            ("GET", "/v1/completions", 405, "method_not_allowed"),
            ("DELETE", "/v1/models", 405, "method_not_allowed"),
            ("GET", "/v1/models/other", 404, "model_not_found"),
        ]:
            async with daemon.http.request(method, daemon.url + path) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (status, code)
                assert response.headers["X-Request-ID"]


async def test_models_health_ready_status(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        answers = {}
        for path in ("/v1/models", "/v1/models/bytes", "/health", "/ready", "/v1/status"):
            async with daemon.http.get(daemon.url + path) as response:
                assert response.status == 200
                answers[path] = await response.json()
    assert answers["/v1/models"]["data"] == [answers["/v1/models/bytes"]]
    assert answers["/v1/models/bytes"]["id"] == "bytes"
    status = answers["/v1/status"]
    assert status["state"] == "ready"
    assert status["notes"] == ["a note"]
    assert status["startup"][0]["name"] == "starting the engine process"


async def test_before_the_engine_is_ready(tmp_path: Path) -> None:
    async with running(tmp_path, start=False) as daemon:
        status, answer, _ = await daemon.post({"prompt": "a"})
        assert (status, answer["error"]["code"]) == (503, "engine_not_ready")
        async with daemon.http.get(daemon.url + "/ready") as response:
            assert response.status == 503
            assert "starting" in (await response.json())["error"]["message"]
        async with daemon.http.get(daemon.url + "/health") as response:
            assert response.status == 200


async def test_an_engine_that_does_not_answer_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, silent=True) as daemon:
        ask = daemon.services.supervisor.status
        monkeypatch.setattr(daemon.services.supervisor, "status", lambda: ask(limit_s=0.05))
        async with daemon.http.get(daemon.url + "/ready") as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "engine_silent"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_the_engine(tmp_path: Path, stream: bool) -> None:
    async with running(tmp_path, max_steps=5) as daemon:
        body = {"prompt": [97], "max_tokens": 4000, "stream": stream}
        asking = asyncio.create_task(_first_bytes(daemon, body))
        await daemon.engine_says(lambda status: len(status["submitted"]) == 1)
        if stream:
            await asking
        asking.cancel()
        await asyncio.wait([asking])
        status = await daemon.engine_says(lambda status: status["live"] == 0)
        assert status["cancelled"] == [1]
        assert len(daemon.services.table) == 0


async def _first_bytes(daemon: Running, body: dict[str, Any]) -> None:
    """Leaving the session's context cuts the connection."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{daemon.url}/v1/completions", json=body) as response,
    ):
        await response.content.readany()
        response.close()


async def test_many_clients_cut_their_sockets_in_mid_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        body = {"prompt": [97], "max_tokens": 4000, "stream": True}
        await asyncio.gather(*(_first_bytes(daemon, body) for _ in range(20)))
        status = await daemon.engine_says(lambda status: status["live"] == 0)
        assert sorted(status["cancelled"]) == list(range(1, 21))
        assert (await daemon.complete(prompt="a"))["choices"]


async def test_a_refusal_by_the_engine_has_its_status_even_when_streaming(tmp_path: Path) -> None:
    async with running(tmp_path, refuse_on=9) as daemon:
        for stream in (True, False):
            status, answer, _ = await daemon.post({"prompt": [9], "stream": stream})
            assert (status, answer["error"]["code"]) == (400, "kv_too_small")
        assert len(daemon.services.table) == 0


async def test_engine_death_in_mid_stream_is_an_error_event(tmp_path: Path) -> None:
    async with running(tmp_path, crash_on=9, step_ms=20) as daemon:
        events = await _events(daemon, {"prompt": [9, 97], "max_tokens": 100, "stream": True})
        error = json.loads(events[-1])["error"]
        assert (error["code"], "SIGKILL" in error["message"]) == ("engine_crashed", True)
        assert len(events) == 4, "three tokens, once each"
        assert (await daemon.complete(prompt="a", max_tokens=1))["choices"]


async def _events(daemon: Running, body: dict[str, Any]) -> list[str]:
    async with daemon.http.post(f"{daemon.url}/v1/completions", json=body) as response:
        events = (await response.read()).decode().split("\n\n")
    return [event.removeprefix("data: ") for event in events if event]


async def test_concurrent_streams_do_not_mix(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        prompts = [f"prompt number {number}. " for number in range(30)]
        answers = await asyncio.gather(
            *(daemon.stream(prompt=list(prompt.encode()), max_tokens=2 * len(prompt)) for prompt in prompts)
        )
    assert [text_of(events) for events in answers] == [prompt * 2 for prompt in prompts]
