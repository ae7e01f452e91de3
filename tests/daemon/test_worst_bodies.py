"""A real daemon and the worst that clients can send: others are answered meanwhile, memory comes back."""

import json
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fuzzlib.large import Bystander, LargeFrame
from fuzzlib.talk import HttpTalker
from support.daemon_process import ENV, LIMIT_S, model_folder
from support.eventually import eventually_now

from semipd.core.sampling import MAX_STOP_TOKEN_IDS
from semipd.wire.client_protocol import hello
from semipd.wire.frames import HEADER, FrameReader, encode_frame

BODY_BYTES = 2**23
KEPT_BYTES = 50 * 10**6
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Daemon:
    process: "subprocess.Popen[str]"
    url: str
    socket_path: Path
    stderr: Path

    @property
    def rss(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    def post(self, path: str, body: bytes | dict[str, Any]) -> tuple[int, Any]:
        from http.client import HTTPConnection

        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = HTTPConnection(self.url.removeprefix("http://"), timeout=LIMIT_S)
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer


@contextmanager
def started(folder: Path, template: str | None = None) -> Iterator[Daemon]:
    model = model_folder(folder / "model")
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    path, stderr_path = folder / "d.sock", folder / "stderr"
    command = [sys.executable, "-m", "semipd.commands.daemon", "start", "--device", "fake", "--port", "0"]
    command += ["--model", str(model), "--socket", str(path), "--set", "model.served_model_name=x"]
    with stderr_path.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENV)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "serves" in line, stderr_path.read_text()
        yield Daemon(process, line.split()[-1], path, stderr_path)
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        process.stdout.close()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with started(tmp_path_factory.mktemp("worst")) as running:
        yield running
        assert "Traceback" not in running.stderr.read_text()


def filled(head: bytes, unit: bytes, tail: bytes, num_bytes: int = BODY_BYTES) -> bytes:
    return head + unit * ((num_bytes - len(head) - len(tail)) // len(unit)) + tail


EMPTY_MESSAGE = b'{"role":"user","content":""},'


def with_arguments(arguments: str, **fields: Any) -> bytes:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return json.dumps({"messages": [{"role": "assistant", "tool_calls": [call]}], **fields}).encode()


SAID = b'{"messages":[{"role":"user","content":"'
NAMES = b"{" + b",".join(b'"k%d":1' % idx for idx in range(500_000)) + b"}"

WORST: dict[str, tuple[str, bytes, int, str]] = {
    "words": (COMPLETIONS, filled(b'{"prompt":"', b"hello ", b'"}'), 400, "context_length_exceeded"),
    "words to tokenize": ("/tokenize", filled(b'{"prompt":"', b"hello ", b'"}'), 400, "request_too_large"),
    "a long message": (CHAT, filled(SAID, b"hello ", b'"}]}'), 400, "context_length_exceeded"),
    "messages": (CHAT, filled(b'{"messages":[', EMPTY_MESSAGE, b"1]}"), 413, "body_too_large"),
    "parts": (
        CHAT, filled(b'{"messages":[{"role":"user","content":[', b'{"type":"text","text":""},', b"1]}]}"),
        413, "body_too_large",
    ),
    "prompts": (COMPLETIONS, filled(b'{"prompt":[', b"[1],", b"[1]]}"), 413, "body_too_large"),
    "no messages": (CHAT, filled(b'{"messages":[', b"{},", b"{}]}"), 413, "body_too_large"),
    "a field nobody knows": (
        "/tokenize", filled(b'{"prompt":"a","x":[', b"[],", b"1]}"), 413, "body_too_large",
    ),
    "names": (COMPLETIONS, NAMES, 413, "body_too_large"),
    "ids": ("/detokenize", filled(b'{"tokens":[', b"1,", b"1]}"), 413, "body_too_large"),
    "ids out of range": (
        "/detokenize", filled(b'{"tokens":[', b"9999,", b"1]}", 500_000), 400, "invalid_value",
    ),
    "lists inside arguments": (
        CHAT, with_arguments("[" + "[]," * 2_000_000 + "1]", max_tokens=-1), 400, "invalid_value",
    ),
    "a model name": (
        COMPLETIONS, filled(b'{"prompt":"a","model":"', b"x", b'"}'), 404, "model_not_found",
    ),
}  # fmt: skip


def talkers(daemon: Daemon) -> tuple[HttpTalker, Bystander]:
    tally = Counter[str]()
    return HttpTalker(daemon.url, tally), Bystander(daemon.url, daemon.socket_path, tally, tally)


@pytest.mark.parametrize("name", WORST)
def test_others_are_answered_meanwhile(daemon: Daemon, name: str) -> None:
    path, body, status, code = WORST[name]
    answers = list[tuple[int, Any]]()
    _, watched = talkers(daemon)
    watched.watch(lambda: answers.append(daemon.post(path, body)))
    watched.close()
    assert (answers[0][0], answers[0][1]["error"]["code"]) == (status, code)
    assert len(json.dumps(answers[0][1])) < 1500, "what was sent is not sent back"


def test_memory_comes_back(daemon: Daemon) -> None:
    daemon.post("/tokenize", filled(b'{"prompt":"', b"hello ", b'"}', 100_000))
    before = daemon.rss
    for path, body, *_ in WORST.values():
        daemon.post(path, body)
    for _ in range(2):
        status, answer = daemon.post("/tokenize", filled(b'{"prompt":"', b"hello ", b'"}', 600_000))
        assert (status, answer["error"]["code"]) == (400, "request_too_large")
    eventually_now(lambda: daemon.rss < before + KEPT_BYTES, f"not more than {before} bytes and 50 MB")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [5] * 400, "max_tokens": 1, "prompt_logprobs": 20, "n": 100},
        pytest.param(
            {"prompt": [5] * 10, "max_tokens": 400, "logprobs": 20, "n": 100, "ignore_eos": True},
            marks=pytest.mark.soak,
        ),
    ],
)
def test_memory_comes_back_after_large_answers(daemon: Daemon, body: dict[str, Any]) -> None:
    """Nearly as many log-probabilities as an answer may hold: 100 MB when they were kept as they came."""
    before = daemon.rss
    assert daemon.post(COMPLETIONS, body)[0] == 200
    eventually_now(lambda: daemon.rss < before + KEPT_BYTES, f"not more than {before} bytes and 50 MB")


@pytest.mark.parametrize(
    ("field", "most"),
    [("stop_token_ids", [1] * MAX_STOP_TOKEN_IDS), ("cache_salt", "s" * 1024), ("stop", ["s" * 1024] * 64)],
)
def test_fields_that_every_sequence_carries_are_bounded(daemon: Daemon, field: str, most: Any) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    assert daemon.post(COMPLETIONS, body | {field: most})[0] == 200
    status, answer = daemon.post(COMPLETIONS, body | {field: most + most[:1]})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_value", field)


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
@pytest.mark.parametrize(
    "arguments", ["[" * 100_000, '{"a":' * 50_000, "9" * 5000, '"\\ud800"', "no JSON", ""]
)
def test_arguments_that_cannot_be_read_are_text(daemon: Daemon, path: str, arguments: str) -> None:
    status, answer = daemon.post(
        path, with_arguments(arguments, **({"max_tokens": 1} if path == CHAT else {}))
    )
    assert status == 200, answer


DEEP = "[" * 150 + "]" * 150
TOO_DEEP = "[" * 1000 + "]" * 1000


@pytest.mark.parametrize(
    "field", ["tools", "metadata", "logit_bias", "chat_template_kwargs", "stop", "prompt", "x"]
)
@pytest.mark.parametrize("value", [DEEP, TOO_DEEP, '"\\ud800"', "9" * 5000, "1e999"])
def test_what_is_nested_or_no_text_is_answered(daemon: Daemon, field: str, value: str) -> None:
    for path in (CHAT, COMPLETIONS, "/tokenize", "/detokenize"):
        body = f'{{"messages":[{{"role":"user","content":"a"}}],"max_tokens":1,"{field}":{value}}}'
        status, answer = daemon.post(path, body.encode())
        assert status == 200 or (400 <= status < 500 and answer["error"]["code"])


@pytest.mark.parametrize("name", ["prompt", "messages", "x"])
@pytest.mark.parametrize("item", ["[]", "{}", "1", "[[]]"])
def test_wide_frames_hold_nobody(daemon: Daemon, name: str, item: str) -> None:
    _, watched = talkers(daemon)
    watched.say(LargeFrame(name, item, 2**22, is_deep=False))
    watched.close()


def test_a_frame_of_many_values_is_refused_with_the_numbers(daemon: Daemon) -> None:
    said = frames_of(daemon, b"\x83\xa2id\x01\xa2op\xa8generate\xa6prompt" + array(array(b"\x90", 40), 4000))
    assert said[-1]["error"]["code"] == "malformed_frame"
    assert "limits.max_body_values=262144" in said[-1]["error"]["message"]


def test_a_deep_operation_is_no_operation(daemon: Daemon) -> None:
    said = frames_of(daemon, b"\x82\xa2id\x01\xa2op" + b"\x91" * 900 + b"\x01")
    assert [frame["error"]["code"] for frame in said[1:]] == ["unknown_operation"]


def array(item: bytes, count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count) + item * count


def frames_of(daemon: Daemon, body: bytes) -> list[dict[str, Any]]:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(LIMIT_S)
        connection.connect(str(daemon.socket_path))
        connection.sendall(encode_frame(hello("test")) + HEADER.pack(len(body)) + body)
        connection.shutdown(socket.SHUT_WR)
        reader, said = FrameReader(), list[dict[str, Any]]()
        while data := connection.recv(2**16):
            said += reader.feed(data)
    return said


LOOP = "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}x"


def test_a_template_that_loops_is_told_of_and_hurts_nobody(tmp_path: Path) -> None:
    with started(tmp_path, LOOP) as daemon:
        assert "limits.template_ms=2000" in daemon.stderr.read_text()
        _, watched = talkers(daemon)
        answers = list[tuple[int, Any]]()
        chat = {"messages": [{"role": "user", "content": "a"}]}
        watched.watch(lambda: answers.append(daemon.post(CHAT, chat)))
        watched.close()
        assert (answers[0][0], answers[0][1]["error"]["code"]) == (400, "chat_template_limit")
        assert daemon.post(COMPLETIONS, {"prompt": "a", "max_tokens": 1})[0] == 200


def test_a_template_that_does_not_compile_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="invalid_chat_template"), started(tmp_path, "{{ 1 | nothing }}"):
        pass


def test_renderers_end_with_the_daemon(tmp_path: Path) -> None:
    with started(tmp_path) as daemon:
        assert renderers_of(daemon.process.pid) == [], "after the trial there is none"
        daemon.post(CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1})
        [child] = renderers_of(daemon.process.pid)
        daemon.process.kill()
        eventually_now(lambda: not Path(f"/proc/{child}").exists(), "the renderer ends with a killed daemon")


def renderers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in children if b"render_child" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
