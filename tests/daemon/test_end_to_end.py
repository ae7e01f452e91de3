"""The product as a user meets it: a real daemon on the CPU device, the demo model, curl and openai."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.patience import Patience

import semipd

DEMO = Path(semipd.__file__).parent / "checkpoints" / "demo"
START_LIMIT_S = 90
IGNORE_EOS = {"ignore_eos": True}
PROMPT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst"


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "semipd.commands.daemon",
        "start",
        "--port",
        "0",
        "--socket",
        str(folder / "s.sock"),
    ]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
        )


def refused(folder: Path, *arguments: str) -> str:
    """What a start that must fail says."""
    with start(folder, *arguments) as process:
        try:
            assert process.wait(START_LIMIT_S) != 0
        finally:
            process.kill()
    said = (folder / "log").read_text()
    assert "Traceback" not in said
    return said


class Demo:
    """A daemon on the demo model."""

    def __init__(self, folder: Path) -> None:
        self.process = start(folder, "--set", "kv.bytes=33554432")
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(3)]
        assert lines[2].startswith("try: "), (folder / "log").read_text()
        self.curl = lines[2].removeprefix("try: ").strip()
        found = re.search(r"http://[\d.:]+", lines[0])
        assert found is not None
        self.url = found[0]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/v1/status", timeout=20) as answer:
            document: dict[str, Any] = json.load(answer)
            return document

    def wait_for(self, used_blocks: int) -> None:
        patience = Patience(20)
        while (used := self.status()["kv"]["used_blocks"]) != used_blocks:
            assert not patience.is_over(), f"{used} blocks are in use, not {used_blocks}"
            time.sleep(0.05)

    def close(self) -> None:
        self.client.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    yield demo
    demo.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_streams_text_from_both_lanes(demo: Demo) -> None:
    before = demo.status()["lanes"]
    answer = subprocess.run(["sh", "-c", demo.curl], capture_output=True, text=True, timeout=60)
    events = [line.removeprefix("data: ") for line in answer.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    # drawn without a seed, so it may end soon
    assert len(events) > 5, "the text came in one piece"
    assert len(text.split()) > 3
    after = demo.status()["lanes"]
    assert after["prefill"]["prefill_tokens"] > before["prefill"]["prefill_tokens"]
    assert after["prefill"]["decode_tokens"] == 0
    assert after["decode"]["decode_tokens"] > before["decode"]["decode_tokens"] + 5
    assert after["decode"]["prefill_tokens"] == 0


def test_a_repeated_prompt_hits_its_prefix_and_greedy_text_is_english(demo: Demo) -> None:
    answers = [
        demo.client.completions.create(model="demo", prompt=PROMPT, max_tokens=60, temperature=0)
        for _ in "ab"
    ]
    cached = [answer.usage.prompt_tokens_details.cached_tokens or 0 for answer in answers]  # type: ignore[union-attr]
    assert cached[0] == 0
    assert cached[1] >= 16
    text = answers[1].choices[0].text
    assert " Citizen:\n" in text, "the speaker's name is the obvious continuation"
    assert len(re.findall(r"\b(the|and|you|to|of|I|my|is|not|a)\b", text)) >= 5, text


def test_a_seed_repeats_its_text_and_another_does_not(demo: Demo) -> None:
    def text(seed: int) -> str:
        answer = demo.client.completions.create(model="demo", prompt="ROMEO:\n", max_tokens=40, seed=seed)
        return answer.choices[0].text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_eight_streams_at_once_beside_a_long_prompt(demo: Demo) -> None:
    streams = [
        demo.client.completions.create(
            model="demo", prompt=[seed + 5] * 40, max_tokens=100, stream=True, extra_body=IGNORE_EOS
        )
        for seed in range(8)
    ]
    long = demo.client.completions.create(
        model="demo", prompt=[9] * 1900, max_tokens=5, extra_body=IGNORE_EOS
    )
    assert long.usage is not None
    assert (long.usage.prompt_tokens, long.usage.completion_tokens) == (1900, 5)
    for stream in streams:
        assert [event.choices[0].finish_reason for event in stream][-1] == "length"
    demo.wait_for(used_blocks=0)


def test_killing_a_client_in_mid_stream_returns_its_blocks(demo: Demo) -> None:
    body = {"prompt": [7] * 200, "max_tokens": 1800, "stream": True, "ignore_eos": True}
    command = ["curl", "-sN", f"{demo.url}/v1/completions", "-H", "Content-Type: application/json"]
    with subprocess.Popen([*command, "-d", json.dumps(body)], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline().startswith(b"data: ")
        assert demo.status()["kv"]["used_blocks"] >= 13
        client.kill()
    demo.wait_for(used_blocks=0)
    assert demo.status()["requests"]["decoding"] == 0


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"prompt": [1] * 3000}, 400, "context_length_exceeded", "3000 tokens"),
        ({"prompt": "x", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        ({"prompt": "x", "temperature": -1}, 400, "invalid_value", "temperature"),
        ({"prompt": [10**9]}, 400, "invalid_value", "vocabulary"),
        ({"prompt": "x", "model": "gpt-9"}, 404, "model_not_found", "demo"),
    ],
)
def test_bad_requests_get_the_numbers(
    demo: Demo, body: dict[str, Any], status: int, code: str, words: str
) -> None:
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{demo.url}/v1/completions", data=data, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    with caught.value as answer:
        error = json.load(answer)["error"]
    assert (answer.code, error["code"]) == (status, code)
    assert words in error["message"]


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    engine = children(demo.process.pid)
    workers = [pid for parent in engine for pid in children(parent)]
    assert (len(engine), len(workers)) == (1, 2)
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(30) == 0
    demo.close()
    assert not [pid for pid in engine + workers if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "s.sock").exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class TestStartsThatFail:
    """Each names the problem and the next step, and leaves nothing behind."""

    def test_truncated_weights(self, tmp_path: Path) -> None:
        folder = shutil.copytree(DEMO, tmp_path / "cut")
        weights = folder / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
        said = refused(tmp_path, "--model", str(folder))
        assert "[checkpoint_corrupt]" in said
        assert "model.safetensors" in said

    def test_unknown_architecture_and_rope(self, tmp_path: Path) -> None:
        folder = shutil.copytree(DEMO, tmp_path / "odd")
        config = json.loads((folder / "config.json").read_text())
        other = {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
        (folder / "config.json").write_text(json.dumps(config | other))
        assert "[unsupported_architecture]" in refused(tmp_path, "--model", str(folder))
        scaling = {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}
        (folder / "config.json").write_text(json.dumps(config | scaling))
        assert "[unsupported_rope]" in refused(tmp_path, "--model", str(folder))

    def test_missing_folder(self, tmp_path: Path) -> None:
        assert "[model_not_found]" in refused(tmp_path, "--model", str(tmp_path / "nowhere"))

    def test_too_little_memory_is_a_table_with_the_safe_value(self, tmp_path: Path) -> None:
        said = refused(tmp_path, "--set", f"kv.bytes={10**15}")
        assert "[insufficient_memory]" in said
        assert re.search(r"kv.bytes\D+\d", said), said

    def test_port_in_use(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            said = refused(tmp_path, "--port", str(taken.getsockname()[1]))
        assert "[address_in_use]" in said
