"""Claiming addresses: refusals, stale files, permissions."""

import os
import socket
import stat
from pathlib import Path

import pytest

from semipd.core.errors import SemipdError
from semipd.daemon.access import addresses
from semipd.daemon.access.addresses import claim_http, claim_socket


def refused_socket(path: Path) -> SemipdError:
    with pytest.raises(SemipdError) as refused, claim_socket(path):
        pass
    return refused.value


def test_socket_is_ours_alone_and_goes_with_its_context(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "s.sock"
    umask = os.umask(0o022)
    try:
        with claim_socket(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert os.umask(0o022) == 0o022
        assert not path.exists()
    finally:
        os.umask(umask)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
        dead.listen()
    assert path.exists()
    with claim_socket(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with claim_socket(path):
        error = refused_socket(path)
        assert error.code == "address_in_use"
        assert f"pid {os.getpid()}" in error.message
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))


def test_what_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    path.write_text("precious")
    assert refused_socket(path).code == "address_in_use"
    assert path.read_text() == "precious"


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with claim_socket(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.exists()


def test_long_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused_socket(tmp_path / ("é" * 60))
    assert error.code == "socket_path_too_long"
    assert "107" in error.message
    monkeypatch.chdir(tmp_path)
    with claim_socket(Path("x" * 107)):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused_socket(tmp_path / "file" / "s.sock").code == "invalid_address"


def test_the_default_folder_must_be_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "semipd" / "daemon.sock"
    monkeypatch.setattr(addresses, "default_socket_path", lambda: path)
    path.parent.mkdir(mode=0o755)
    error = refused_socket(path)
    assert error.code == "socket_folder_unsafe"
    assert "755" in error.message
    path.parent.chmod(0o700)
    with claim_socket(path):
        pass
    path.parent.rename(tmp_path / "elsewhere")
    path.parent.symlink_to(tmp_path / "elsewhere")
    assert refused_socket(path).code == "socket_folder_unsafe"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_addresses_others_can_reach_need_a_key(host: str) -> None:
    with pytest.raises(SemipdError) as refused:
        claim_http(host, 0)
    assert refused.value.code == "key_required"


def test_a_port_in_use() -> None:
    (taken,) = claim_http("127.0.0.1", 0)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(SemipdError) as refused:
            claim_http("127.0.0.1", port)
    assert refused.value.code == "address_in_use"
    assert str(port) in refused.value.message
    assert refused.value.param == "server.port"


def test_names_resolve_to_loopback_with_one_port() -> None:
    listeners = claim_http("localhost", 0)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    for listener in listeners:
        listener.close()


def test_no_such_host() -> None:
    with pytest.raises(SemipdError) as refused:
        claim_http("no such host", 0)
    assert refused.value.code == "invalid_address"
