"""What the operations of one connection on the Unix socket share."""

from dataclasses import dataclass, field

from semipd.daemon.callers import OPERATOR, Caller
from semipd.daemon.choices import Choices
from semipd.daemon.frame_stream import FrameStream
from semipd.daemon.logprobs import TokenTexts
from semipd.daemon.peers import Peer
from semipd.daemon.services import Services
from semipd.daemon.subscription import Subscription
from semipd.wire.client_protocol import RequestId


@dataclass(slots=True)
class Session:
    """`peer` and `caller`: who it is; nobody until the kernel has been asked. `generations` and
    `subscriptions`: those under way, by the id of their request."""

    services: Services
    texts: TokenTexts
    stream: FrameStream
    peer: Peer = field(default_factory=lambda: Peer(0, -1))
    caller: Caller = field(default_factory=Caller)
    generations: dict[RequestId, Choices] = field(default_factory=dict)
    subscriptions: dict[RequestId, Subscription] = field(default_factory=dict)

    def take_token(self) -> None:
        """Of a guest's rate. Raises SemipdError(`rate_limited`)."""
        if self.caller is not OPERATOR:
            self.services.limiter.take(self.caller.name)
