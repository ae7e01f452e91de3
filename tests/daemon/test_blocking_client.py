"""The blocking client and semipd-client against a daemon in a process of its own."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_process import ENV, LIMIT_S, DaemonProcess, scripted_process

from semipd.client import Client
from semipd.core.errors import ProtocolError, SemipdError
from semipd.wire.client_protocol import hello
from semipd.wire.frames import encode_frame


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with scripted_process(tmp_path_factory.mktemp("daemon"), max_steps=30) as running:
        yield running


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """For a test that counts what the daemon has done, or ends it."""
    with scripted_process(tmp_path, max_steps=30) as running:
        yield running


def test_generate(daemon: DaemonProcess) -> None:
    with Client.connect(daemon.socket_path) as client:
        items = list(client.generate("The quick brown fox", max_tokens=12))
        chat = list(client.generate(messages=[{"role": "user", "content": "hi"}], max_tokens=4))
        with pytest.raises(SemipdError) as refused:
            next(client.generate("a", max_tokens=0))
    assert sum(len(item.token_ids) for item in items) == 12
    assert "".join(item.text for item in items).startswith("The quick brown fox")
    assert [item.finish_reason for item in items[-2:]] == [None, "length"] or len(items) == 1
    assert items[-1].usage is not None
    assert items[-1].usage["completion_tokens"] == 12
    assert "<user>hi".startswith("".join(item.text for item in chat))
    assert refused.value.param == "max_tokens"


def test_choices_tokens_and_models(daemon: DaemonProcess) -> None:
    with Client.connect(daemon.socket_path) as client:
        items = list(client.generate("ab", n=3, max_tokens=5, logprobs=None))
        tokens = client.tokenize("ab", return_token_strs=True)
        text = client.detokenize(tokens.token_ids)
        [model] = client.models()
        doomed = client.generate("ab", n=2, max_tokens=400)
        next(doomed)
        assert doomed.cancel()
        ends = {item.index for item in doomed if item.finish_reason == "cancelled"}
        with pytest.raises(SemipdError) as refused:
            client.tokenize("x" * 2**22)
        assert client.greeting.max_model_len == model.max_model_len == tokens.max_model_len
    assert sorted(item.index for item in items if item.finish_reason == "length") == [0, 1, 2]
    assert [item.is_last for item in items] == [False] * (len(items) - 1) + [True]
    assert tokens.token_strs is not None
    assert "ab" in text
    assert ends == {0, 1}
    assert refused.value.code == "cannot_be_sent"


def test_several_streams_and_questions_on_one_connection(own_daemon: DaemonProcess) -> None:
    with Client.connect(own_daemon.socket_path) as client:
        first, second = client.generate([40], max_tokens=20), client.generate([41], max_tokens=20)
        states = client.subscribe(interval_ms=100, events=True)
        assert client.status()["state"] == "ready"
        tokens: dict[str, list[int]] = {name: [] for name in ("first", "second")}
        for one, other in zip(first, second, strict=False):
            tokens["first"] += one.token_ids
            tokens["second"] += other.token_ids
        tokens["first"] += [token for item in first for token in item.token_ids]
        tokens["second"] += [token for item in second for token in item.token_ids]
        frame = next(states)
        assert frame.state["requests"]["totals"].get("admitted", 0) <= 2
        states.close()
        assert next(states, None) is None
        assert len(client.requests(state="finished", limit=10)) == 2
    assert set(tokens["first"]) == {40}
    assert set(tokens["second"]) == {41}


def test_a_slow_reader_of_states_gets_the_newest(daemon: DaemonProcess) -> None:
    with (
        Client.connect(daemon.socket_path) as client,
        client.subscribe(interval_ms=100, events=True) as states,
    ):
        first = next(states)
        chosen = client.subscribe(interval_ms=100, events=True, kinds=("finished",))
        next(chosen)
        list(client.generate([40], max_tokens=3, request_id="seen"))
        late = next(states)
        while "finished" not in [event["kind"] for event in late.events]:
            late = late.then(next(states))
        few = next(chosen)
        while not few.events:
            few = next(chosen)
    assert late.state["uptime_s"] > first.state["uptime_s"]
    assert [event["kind"] for event in late.events] == ["arrived", "first_byte", "finished"]
    assert few.events == late.events[-1:]


def test_cancels(daemon: DaemonProcess) -> None:
    with Client.connect(daemon.socket_path) as client:
        stream = client.generate([40], max_tokens=100, request_id="one")
        next(stream)
        assert stream.cancel()
        assert list(stream)[-1].finish_reason == "cancelled"
        with client.generate([40], max_tokens=100, request_id="two") as left:
            next(left)
        other = client.generate([40], max_tokens=100, request_id="three")
        next(other)
        assert client.cancel_request("three") == "cancelled"
        with pytest.raises(SemipdError) as ended:
            list(other)
        assert client.cancel_request("one") == "already_finished"
        assert client.cancel_request("four") == "not_found"
        [record] = client.requests(request_id="two")
        assert record["finish_reason"] == "cancelled"
    assert ended.value.code == "request_cancelled"
    with pytest.raises(SemipdError) as closed:
        client.status()
    assert closed.value.code == "connection_lost"


def test_the_end_of_the_daemon(own_daemon: DaemonProcess) -> None:
    client = Client.connect(own_daemon.socket_path)
    states = client.subscribe(interval_ms=60_000)
    assert next(states).state
    stream = client.generate([40], max_tokens=100)
    next(stream)
    assert client.drain(limit_s=80_000)["awaited"] == 1
    assert client.shutdown(limit_s=0, reason="test")["state"] == "stopping"
    with pytest.raises(SemipdError) as ended:
        list(stream)
    assert ended.value.code == "drain_deadline"
    assert list(states) == []
    with pytest.raises(SemipdError) as gone:
        next(client.generate([40]))
    assert gone.value.code in ("connection_lost", "shutting_down", "draining")
    client.close()


def test_nobody_there_and_nobody_of_ours(tmp_path: Path) -> None:
    with pytest.raises(SemipdError) as refused:
        Client.connect(tmp_path / "none.sock")
    assert refused.value.code == "daemon_not_running"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()

        def answer() -> None:
            for greeting in (encode_frame(hello("x") | {"protocol": 99}), b""):
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(greeting)
                    peer.recv(4096)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ProtocolError) as other:
            Client.connect(tmp_path / "s.sock")
        with pytest.raises(SemipdError) as silent:
            Client.connect(tmp_path / "s.sock")
    assert other.value.code == "protocol_version"
    assert silent.value.code == "connection_lost"


def test_watch(own_daemon: DaemonProcess) -> None:
    lines = own_daemon.client("watch", "--count", "2", "--interval", "0.1").stdout.splitlines()
    frames = own_daemon.client("watch", "--count", "2", "--interval", "0.1", "--json").stdout.splitlines()
    refused = own_daemon.client("watch", "--interval", "0.001")
    assert len(lines) == len(frames) == 2
    for fact in ("ready", "wait   0", "split 1+1", "attained   - %", "ok"):
        assert fact in lines[0]
    assert json.loads(frames[1])["uptime_s"] > json.loads(frames[0])["uptime_s"]
    assert refused.returncode == 1
    assert "interval_ms" in refused.stderr


def test_watch_shows_events_and_survives_ctrl_c(daemon: DaemonProcess) -> None:
    command = [sys.executable, "-m", "semipd.commands.client", "watch", "--interval", "0.1", "--events"]
    watching = subprocess.Popen(
        [*command, "--socket", str(daemon.socket_path)], stdout=subprocess.PIPE, text=True, env=ENV
    )
    assert watching.stdout is not None
    watching.stdout.readline()
    daemon.client("generate", "a", "--max-tokens", "2")
    seen = ""
    while "finished" not in seen:
        seen += watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert watching.wait(LIMIT_S) == 130
    watching.stdout.close()
    assert "  arrived " in seen
    assert "reason=length" in seen


def test_chat_from_a_pipe(daemon: DaemonProcess) -> None:
    answer = daemon.client("chat", "--max-tokens", "9", "--system", "be brief", input="hello there")
    timed = daemon.client("generate", "a b", "--max-tokens", "3", "--timing")
    assert answer.stdout.startswith("<system>be"), answer
    assert "ttft_ms" in timed.stderr
    assert "ttft_ms" not in timed.stdout


def test_an_interactive_conversation_keeps_its_history(own_daemon: DaemonProcess) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "semipd.commands.client", "chat", "--max-tokens", "20"]
    chatting = subprocess.Popen(
        [*command, "--socket", str(own_daemon.socket_path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENV,
    )
    os.close(theirs)
    os.write(ours, b"one\n\ntwo\n\x04")
    out, _ = chatting.communicate(timeout=LIMIT_S)
    os.close(ours)
    assert chatting.returncode == 0
    assert b"<user>one" in out
    with Client.connect(own_daemon.socket_path) as client:
        prompts = [record["prompt_tokens"] for record in client.requests()]
    assert len(prompts) == 2
    assert prompts[0] > prompts[1] + 5, "the second turn carries the first and its answer"


def test_the_daemon_needs_no_time_of_an_idle_subscriber(daemon: DaemonProcess) -> None:
    """Not a benchmark: only that waiting does not spin."""
    with Client.connect(daemon.socket_path) as client:
        states = client.subscribe(interval_ms=60_000)
        next(states)
        before_s, began_s = _cpu_s(daemon.process.pid), time.monotonic()
        time.sleep(1.0)
        used_s = _cpu_s(daemon.process.pid) - before_s
    assert used_s < 0.5 * (time.monotonic() - began_s)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
