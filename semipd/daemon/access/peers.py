"""The process at the other end of a Unix socket, and what it may do."""

import grp
import os
import socket
import struct
from typing import NamedTuple

from semipd.core.errors import ProtocolError, SemipdError
from semipd.daemon.access.callers import OPERATOR, Caller

_UCRED = struct.Struct("3i")
_GID = struct.Struct("I")
_SO_PEERGROUPS = getattr(socket, "SO_PEERGROUPS", 59)
_MAX_OPTION_BYTES = 1024
"""Python reads no longer options: 256 groups."""


class Peer(NamedTuple):
    """As the kernel knows it, when it connected."""

    pid: int
    uid: int
    groups: frozenset[int] = frozenset()

    def caller(self, guests_gid: int | None) -> Caller:
        """`guests_gid`: the group whose members are guests; None: there are none. Raises
        ProtocolError(`peer_not_allowed`)."""
        if self.uid in (os.getuid(), 0):
            return OPERATOR
        if guests_gid in self.groups:
            return Caller(f"uid:{self.uid}")
        others = "" if guests_gid is None else f" and members of group {guests_gid}"
        raise ProtocolError(
            "peer_not_allowed", f"This socket serves user {os.getuid()}{others}, not user {self.uid}."
        )


def peer_of(connection: socket.socket) -> Peer:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    return Peer(pid, uid, frozenset({gid, *_supplementary_groups(connection)}))


def _supplementary_groups(connection: socket.socket) -> list[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_OPTION_BYTES)
    except OSError:  # more groups than that, or a kernel before 4.13: only the first group is known
        return []
    return [gid for (gid,) in _GID.iter_unpack(raw)]


def group_id(name: str) -> int:
    """Raises SemipdError(`unknown_group`)."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        message = f"There is no group {name} on this machine."
        raise SemipdError("unknown_group", message, "Correct socket.group.", param="socket.group") from None
