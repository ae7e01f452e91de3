"""/ping, /version and /load; unknown fields and words of clients, as operators see them."""

from pathlib import Path

from support.daemon import running, until
from support.keys import key_settings

from semipd import __version__
from semipd.client import AsyncClient
from semipd.daemon.state.services import MAX_IGNORED_NAMES


async def test_ping_version_and_load(tmp_path: Path) -> None:
    """Open to everybody, like /health."""
    async with running(tmp_path, settings=key_settings(tmp_path)) as daemon:
        for method in ("get", "post"):
            async with daemon.http.request(method, daemon.url + "/ping") as answer:
                assert (answer.status, await answer.read()) == (200, b"")
        status, body, _ = await daemon.ask("GET", "/version")
        assert (status, body) == (200, {"version": __version__})
        status, body, _ = await daemon.ask("GET", "/load")
        assert (status, body) == (200, {"server_load": 0})
        for route in ("/version", "/load"):
            assert (await daemon.ask("POST", route))[0] == 405


async def test_load_counts_requests_while_they_are_served(tmp_path: Path) -> None:
    async with running(tmp_path, max_steps=3) as daemon:
        body = {"prompt": "a", "max_tokens": 50, "n": 3, "stream": True}
        async with daemon.http.post(daemon.url + "/v1/completions", json=body) as answer:
            await answer.content.readany()
            async with await AsyncClient.connect(daemon.socket_path) as client:
                stream = client.generate([97], max_tokens=50)
                await anext(stream)
                assert (await daemon.ask("GET", "/load"))[1] == {"server_load": 2}
        await daemon.post({"prompt": 7.5})
        await until(lambda: daemon.services.num_serving == 0)
        assert (await daemon.ask("GET", "/load"))[1] == {"server_load": 0}


async def test_unknown_fields_are_bounded_and_no_labels(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        odd = ["a b", 'x"} 1\nforged 1', "\x1b[31mred", "é", "", "n" * 65]
        many = {f"f{number}": 1 for number in range(MAX_IGNORED_NAMES * 2)}
        for fields in (dict.fromkeys(odd, 1), many, many):
            await daemon.complete(prompt="a", max_tokens=1, **fields)
        counted = (await daemon.services.status())["ignored_fields"]
        _, metrics, _ = await daemon.ask("GET", "/metrics")
    assert len(counted) <= MAX_IGNORED_NAMES + 1
    assert not set(counted) & set(odd)
    assert sum(counted.values()) == len(odd) + 2 * len(many)
    assert counted["f0"] == 2
    lines = [line for line in metrics.splitlines() if line.startswith("semipd:ignored_fields")]
    assert lines == [f"semipd:ignored_fields_total {float(sum(counted.values()))}"]


async def test_an_operators_words_are_no_control_sequences(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        reason = "\x1b]0;title\x07 line\nforged \u202eabc"
        status, answer, _ = await daemon.post({"reason": reason, "actor": "a\x9bb"}, "/v1/drain")
        assert status == 200
    assert (answer["actor"], answer["reason"]) == ("a b", " ]0;title  line forged  abc")
