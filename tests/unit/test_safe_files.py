"""Files that others could have put something in the place of."""

import os
import socket
from pathlib import Path

import pytest

from semipd.system.safe_files import make_folder, open_log, open_safely, refuse_planted_links

STRANGER = 54321


def test_a_new_log_is_ours_alone(tmp_path: Path) -> None:
    os.close(open_log(tmp_path / "log"))
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    (tmp_path / "log").write_text("before\n")
    descriptor = open_log(tmp_path / "log")
    os.write(descriptor, b"after\n")
    os.close(descriptor)
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for name in ("link", "dangling", "pipe", "socket", "."):
        for flags in (os.O_WRONLY | os.O_APPEND | os.O_CREAT, os.O_RDWR | os.O_CREAT, os.O_RDONLY):
            with pytest.raises(OSError, match=r".") as refused:
                open_safely(tmp_path / name, flags)
            assert refused.value.strerror
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("path", ["/dev/null", "/dev/fd/{}", "/proc/self/fd/{}"])
def test_devices_of_the_system_may_be_logs(tmp_path: Path, path: str) -> None:
    with (tmp_path / "out").open("w") as out:
        descriptor = open_log(Path(path.format(out.fileno())))
        os.write(descriptor, b"said")
        os.close(descriptor)
    assert (tmp_path / "out").read_text() == ("" if path == "/dev/null" else "said")


def test_links_of_others_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "hop").symlink_to("link")
    log = tmp_path / "hop" / "log"
    os.close(open_log(log))
    refuse_planted_links(tmp_path / "link")
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)  # whose links these are not
    if os.getuid():
        refused_as_other(log, tmp_path)
    else:
        os.lchown(tmp_path / "link", STRANGER + 1, -1)
        refused_as_other(log, tmp_path)


def refused_as_other(log: Path, folder: Path) -> None:
    for path in (log, folder / "link" / "log"):
        with pytest.raises(OSError, match="symbolic link of user"):
            open_log(path)


def test_a_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log").write_text("")
    if not os.getuid():
        os.chown(tmp_path / "log", STRANGER + 1, -1)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(OSError, match="belongs to user"):
        open_log(tmp_path / "log")


def test_folders_are_made_only_where_no_link_of_others_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "a")
    if not os.getuid():
        os.lchown(tmp_path / "link", STRANGER + 1, -1)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    with pytest.raises(OSError, match="symbolic link of user"):
        make_folder(tmp_path / "link" / "c")
    assert not (tmp_path / "a" / "c").exists()


def test_links_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links lead to it"):
        refuse_planted_links(tmp_path / "a" / "x")
