"""What the operations of one connection on the Unix socket share."""

import asyncio
from dataclasses import dataclass, field

from semipd.daemon.access.callers import OPERATOR, Caller
from semipd.daemon.access.peers import Peer
from semipd.daemon.operators.actions import socket_peer
from semipd.daemon.requests.choices import Choices
from semipd.daemon.servers.frame_stream import FrameStream
from semipd.daemon.servers.subscription import Subscription
from semipd.daemon.state.services import Services
from semipd.wire.client_protocol import RequestId

MAX_ASKED = 8
"""Questions of one connection to the engine at once: its answers may come all in one turn of our loop."""


@dataclass(slots=True)
class Session:
    """`peer` and `caller`: who it is; nobody until the kernel has been asked. `generations` and
    `subscriptions`: those under way, by the id of their request. `listing`: held while a list is made and
    said, one after the other. `asking`: while the engine is asked."""

    services: Services
    stream: FrameStream
    peer: Peer = field(default_factory=lambda: Peer(0, -1))
    caller: Caller = field(default_factory=Caller)
    generations: dict[RequestId, Choices] = field(default_factory=dict)
    subscriptions: dict[RequestId, Subscription] = field(default_factory=dict)

    listing: asyncio.Lock = field(default_factory=asyncio.Lock)
    asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_ASKED))

    @property
    def peer_name(self) -> str:
        """For the history."""
        return socket_peer(self.peer.pid, self.peer.uid)

    def take_token(self) -> None:
        """Of a guest's rate. Raises SemipdError(`rate_limited`)."""
        if self.caller is not OPERATOR:
            self.services.limiter.take(self.caller.name)
