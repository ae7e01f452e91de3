"""Key files: what is read, what is refused, and that nothing of a key is kept or shown."""

import hmac
import logging
import os
from pathlib import Path

import pytest
from support.keys import ANN, BOB, OPS, key_settings, write_keys

from semipd.config.sections import AuthConfig
from semipd.core.errors import SemipdError
from semipd.daemon.access.auth import Auth
from semipd.daemon.access.callers import Caller
from semipd.daemon.access.keys import Keyring
from semipd.daemon.servers.routes import ROUTES


def load(path: Path, text: str, mode: int = 0o600) -> Keyring:
    return Keyring.load(Path(write_keys(path, text, mode)), "auth.keys_file")


def test_names_and_comments(tmp_path: Path) -> None:
    ring = load(tmp_path / "keys", f"# tenants\n\nann:{ANN}\n bob-2.x : {BOB} \n")
    assert len(ring) == 2
    assert [ring.name_of(key) for key in (ANN, BOB, OPS, "", "ann")] == ["ann", "bob-2.x", None, None, None]
    assert ring.name_of("ü€") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_or_write(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SemipdError) as refused:
        load(tmp_path / "keys", f"ann:{ANN}\n", mode)
    assert refused.value.code == "keys_unsafe"
    assert f"{mode:o}" in refused.value.message
    assert "chmod 600" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no key"),
        ("# nobody\n", "holds no key"),
        (f"{ANN}\n", "Line 1"),
        (f"ann:{ANN}\nann:{BOB}\n", "twice"),
        (f"ann:{ANN}\nbob:{ANN}\n", "also another's"),
        ("ann:short\n", "16 or more"),
        (f"ann:{ANN} {BOB}\n", "visible"),
        (f"a n:{ANN}\n", "letters"),
        (f"uid:1000:{ANN}\nb", "Line 2"),
        ("ann:" + "é" * 20, "ASCII"),
    ],
)
def test_what_is_no_key_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SemipdError) as refused:
        load(tmp_path / "keys", text)
    assert refused.value.code == "keys_invalid"
    assert said in refused.value.message
    assert ANN not in str(refused.value)
    assert refused.value.param in ("auth.keys_file", None)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SemipdError) as refused:
            Keyring.load(path, "auth.keys_file")
        assert refused.value.code == "keys_unreadable"


def test_a_link_that_others_made_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of our own is, such as those that Kubernetes makes for secrets."""
    load(tmp_path / "real", f"ann:{ANN}\n")
    (tmp_path / "keys").symlink_to("real")
    assert len(Keyring.load(tmp_path / "keys", "auth.keys_file")) == 1
    if os.getuid():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        os.lchown(tmp_path / "keys", 54321, -1)
    with pytest.raises(SemipdError) as refused:
        Keyring.load(tmp_path / "keys", "auth.keys_file")
    assert refused.value.code == "keys_unreadable"
    assert "symbolic link of user" in refused.value.message


def test_keys_are_not_kept(tmp_path: Path) -> None:
    ring = load(tmp_path / "keys", f"ann:{ANN}\n")
    assert ANN.encode() not in b"".join(ring._digests.values())


def test_every_key_is_compared_whoever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = load(tmp_path / "keys", f"ann:{ANN}\nbob:{BOB}\n")
    compared: list[bytes] = []

    def compare(known: bytes, presented: bytes) -> bool:
        compared.append(known)
        return known == presented

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (ANN, BOB, OPS):
        compared.clear()
        ring.name_of(key)
        assert len(compared) == 2


def auth(tmp_path: Path, with_keys: bool = True, with_operations: bool = True) -> Auth:
    files = key_settings(tmp_path)
    tenants = files["auth.keys_file"] if with_keys else ""
    operations = files["auth.operations_keys_file"] if with_operations else ""
    return Auth(AuthConfig(keys_file=tenants, operations_keys_file=operations))


def refusal(auth: Auth, caller: Caller, route: str, method: str) -> str | None:
    try:
        auth.check(caller, ACCESS[route], method, route)
    except SemipdError as error:
        return error.code
    return None


ACCESS = {route.path: route.access for route in ROUTES}
OPERATORS_ROUTES = ["/metrics", "/v1/status", "/v1/events", "/v1/partition", "/v1/slo", "/v1/drain"]


def test_without_keys_everybody_may_do_everything(tmp_path: Path) -> None:
    free = auth(tmp_path, with_keys=False, with_operations=False)
    anybody = free.caller(None)
    assert anybody.owns("somebody")
    for route in OPERATORS_ROUTES:
        assert refusal(free, anybody, route, "PUT") is None
    assert not free.needs_key


@pytest.mark.parametrize("header", [None, "", "Bearer", f"Basic {ANN}", "Bearer wrong-key-0123456789", ANN])
def test_without_the_right_key_nobody_comes_in(tmp_path: Path, header: str | None) -> None:
    with pytest.raises(SemipdError) as refused:
        auth(tmp_path).caller(header)
    assert refused.value.code == "invalid_api_key"
    assert ANN not in str(refused.value)


def test_a_key_opens_what_concerns_its_own_requests(tmp_path: Path) -> None:
    closed = auth(tmp_path)
    ann, operator = closed.caller(f"bearer  {ANN}"), closed.caller(f"Bearer {OPS}")
    assert (ann, operator) == (Caller("ann"), Caller("operator:eve", is_operator=True))
    assert ann.owns("ann")
    assert not ann.owns("bob")
    assert not ann.owns("")
    for route in OPERATORS_ROUTES:
        for method in ("GET", "PUT", "DELETE", "POST", "PATCH"):
            assert refusal(closed, ann, route, method) == "operator_required"
            assert refusal(closed, operator, route, method) is None
    for route, method in (
        ("/v1/completions", "POST"),
        ("/v1/requests", "GET"),
        ("/v1/requests/{id}", "DELETE"),
    ):
        assert refusal(closed, ann, route, method) is None


def test_only_an_operations_key(tmp_path: Path) -> None:
    """One user on the loopback, who wants no accidents."""
    half = auth(tmp_path, with_keys=False)
    anybody, operator = half.caller(None), half.caller(f"Bearer {OPS}")
    assert not half.needs_key
    for route in OPERATORS_ROUTES:
        assert refusal(half, anybody, route, "GET") is None
        assert refusal(half, anybody, route, "PUT") == "operator_required"
        assert refusal(half, operator, route, "PUT") is None
    assert refusal(half, anybody, "/v1/chat/completions", "POST") is None
    assert refusal(half, anybody, "/v1/requests/{id}", "DELETE") == "operator_required"


def test_without_an_operations_key_operators_use_the_socket(tmp_path: Path) -> None:
    closed = auth(tmp_path, with_operations=False)
    with pytest.raises(SemipdError) as refused:
        closed.check(closed.caller(f"Bearer {ANN}"), "operator", "POST", "/v1/drain")
    assert "socket" in refused.value.hint


async def test_reloading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    closed = auth(tmp_path)
    write_keys(tmp_path / "keys", "ann:another-key-0123456789\n")
    await closed.reload()
    with pytest.raises(SemipdError):
        closed.caller(f"Bearer {ANN}")
    assert closed.caller("Bearer another-key-0123456789").name == "ann"
    (tmp_path / "keys").chmod(0o644)
    await closed.reload()
    assert closed.caller("Bearer another-key-0123456789").name == "ann", "a mistake locks nobody out"
    assert "keys_unsafe" not in caplog.text
    assert "stay in force" in caplog.text
    assert "another-key" not in caplog.text
