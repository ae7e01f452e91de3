"""Claiming the addresses the daemon listens on; both refuse rather than disturb another daemon."""

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semipd.core.errors import SemipdError
from semipd.daemon.access.peers import peer_of
from semipd.wire.address import default_socket_path, socket_option

MAX_SOCKET_PATH_BYTES = 107
"""sun_path holds 108 with its final zero."""

DEFAULT_BACKLOG = 1024
"""Connections that may wait to be accepted; the system caps it at net.core.somaxconn."""

CONNECT_LIMIT_S = 1.0


def claim_http(
    host: str, port: int, backlog: int = DEFAULT_BACKLOG, *, needs_key: bool = False
) -> list[socket.socket]:
    """Bound sockets, one per address of `host`, all with one port; 0 takes a free one. `needs_key`: clients
    cannot do without one.

    Raises SemipdError: `invalid_address`, `key_required` for an address others can reach,
    `address_in_use`.
    """
    addresses = _resolve(host, port)
    for address in addresses:
        if not needs_key and not ipaddress.ip_address(address[1][0].partition("%")[0]).is_loopback:
            raise SemipdError(
                "key_required",
                f"server.host={host} can be reached from other machines, and there is no API key.",
                "Set auth.keys_file, or set server.host to 127.0.0.1.",
                param="server.host",
            )
    sockets: list[socket.socket] = []
    try:
        for family, (ip, *rest) in addresses:
            sockets.append(_bind_tcp(family, (ip, port, *rest[1:]), backlog))
            port = sockets[0].getsockname()[1]
    except BaseException:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, ...]]]:
    try:
        found = socket.getaddrinfo(
            host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except OSError as error:
        raise SemipdError(
            "invalid_address",
            f"server.host={host} is no address of this machine: {error.strerror}.",
            "Set server.host to 127.0.0.1.",
            param="server.host",
        ) from error
    return list({(family, address): None for family, _, _, _, address in found})  # type: ignore[misc]


def _bind_tcp(family: socket.AddressFamily, address: tuple[object, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise _tcp_refusal(error, f"{address[0]}", f"{address[1]}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _tcp_refusal(error: OSError, ip: str, port: str) -> SemipdError:
    if error.errno == errno.EADDRINUSE:
        return SemipdError(
            "address_in_use",
            f"Port {port} on {ip} is in use.",
            f"Stop what listens there (ss -ltnp 'sport = :{port}' names it), or choose another server.port.",
            param="server.port",
        )
    return SemipdError(
        "invalid_address",
        f"Cannot listen on port {port} of {ip}: {error.strerror}.",
        "Choose another server.host or server.port.",
        param="server.host",
    )


@contextmanager
def claim_socket(
    path: Path, backlog: int = DEFAULT_BACKLOG, group: int | None = None
) -> Iterator[socket.socket]:
    """A listening Unix socket at `path`, open to our own user only, or also to the group with this number;
    the file goes with the context.

    A file left by a daemon that died is replaced. Raises SemipdError: `socket_path_too_long`,
    `socket_folder_unsafe`, `socket_out_of_reach`, `address_in_use`, `invalid_address`.
    """
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_SOCKET_PATH_BYTES:
        raise SemipdError(
            "socket_path_too_long",
            f"The socket path has {num_bytes} bytes; the system allows {MAX_SOCKET_PATH_BYTES}: {path}.",
            "Choose a shorter server.socket.",
            param="server.socket",
        )
    _prepare_folder(path)
    _remove_stale(path)
    with _bind_unix(path, backlog) as listener:
        if group is not None:
            _open_to(path, group)
        ours = path.lstat()
        try:
            yield listener
        finally:
            _remove_if_same(path, ours)


def _prepare_folder(path: Path) -> None:
    """The default folder must be ours alone: it may lie where everybody can create names."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(path, error) from error
    if path != default_socket_path():
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise SemipdError(
            "socket_folder_unsafe",
            f"{folder} must be a folder of user {os.getuid()} with mode 700; "
            f"it belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):o}.",
            "Correct or remove it, or set server.socket.",
            param="server.socket",
        )


def _open_to(path: Path, group: int) -> None:
    """Only now: under the umask it was bound with nobody else could connect."""
    folder = path.parent.stat()
    may_enter = folder.st_mode & (stat.S_IXGRP if folder.st_gid == group else stat.S_IXOTH)
    try:
        os.chown(path, -1, group)
        path.chmod(0o660)
    except OSError as error:
        may_enter = 0
        reason = f"{path} cannot be given to it: {error.strerror}"
    else:
        reason = f"it may not enter {path.parent}, which has mode {stat.S_IMODE(folder.st_mode):o}"
    if not may_enter:
        raise SemipdError(
            "socket_out_of_reach",
            f"The socket is for group {group} (socket.group), but {reason}.",
            f"Choose a server.socket in a folder of mode 750 that belongs to group {group}; our user must be "
            "a member of it.",
            param="socket.group",
        )


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISSOCK(mode):
        raise SemipdError(
            "address_in_use",
            f"{path} exists and is no socket.",
            "Remove it, or choose another server.socket.",
            param="server.socket",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_LIMIT_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            raise _in_use(path, f" ({error.strerror or error})") from error
        raise _in_use(path, f", pid {peer_of(probe).pid}")


def _in_use(path: Path, who: str) -> SemipdError:
    return SemipdError(
        "address_in_use",
        f"Another daemon listens on {path}{who}.",
        f"Stop it with `semipd-daemon stop{socket_option(path)}`, or choose another server.socket.",
        param="server.socket",
    )


def _bind_unix(path: Path, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_umask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(path, "") from error
        raise _unusable(path, error) from error
    finally:
        os.umask(old_umask)
    return listener


def _unusable(path: Path, error: OSError) -> SemipdError:
    return SemipdError(
        "invalid_address",
        f"Cannot listen on {path}: {error.strerror}.",
        "Choose another server.socket.",
        param="server.socket",
    )


def _remove_if_same(path: Path, ours: os.stat_result) -> None:
    try:
        found = path.lstat()
    except OSError:
        return
    if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
        path.unlink(missing_ok=True)
