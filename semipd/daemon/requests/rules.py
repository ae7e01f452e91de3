"""What the configuration says of every request: its root in the prefix cache, deadline, and bounds."""

from dataclasses import dataclass, field

from semipd.config.config import Config
from semipd.config.sections import LimitsConfig
from semipd.core.errors import SemipdError
from semipd.core.sampling import SamplingParams
from semipd.daemon.access.callers import Caller
from semipd.daemon.access.classes import Service
from semipd.daemon.access.terms import Terms


@dataclass(frozen=True, slots=True)
class RequestRules:
    """`timeout_ms`: deadline of requests that name none; 0: none."""

    model_name: str = ""
    timeout_ms: int = 0
    max_unread_tokens: int = 4096
    log_prompts: bool = False
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @classmethod
    def of(cls, config: Config) -> "RequestRules":
        return cls(
            config.served_model_name,
            config.admission.timeout_ms,
            config.limits.max_unread_tokens,
            config.server.log_prompts,
            config.limits,
        )

    def namespace(self, caller: Caller, salt: str | None) -> str:
        """The root of the prefix cache. Unambiguous: neither models nor callers have a NUL in their names."""
        return "\0".join((self.model_name, caller.name, salt or ""))

    def terms(self, caller: Caller, service: Service, params: SamplingParams, num_choices: int = 1) -> Terms:
        """A token with alternatives counts as so many."""
        weight = 1 + (0 if params.logprobs is None else 1 + params.logprobs)
        unread = max(self.max_unread_tokens // weight, 1)
        return Terms(caller.name, service, unread, num_choices)

    def deadline_ms(self, asked_ms: int | None) -> int | None:
        """From arrival; None: no deadline."""
        return asked_ms or self.timeout_ms or None


def deadline_exceeded(timeout_ms: int, num_tokens: int) -> SemipdError:
    return SemipdError(
        "deadline_exceeded",
        f"The request did not finish within timeout_ms={timeout_ms}; {num_tokens} tokens were generated.",
        "Send a longer timeout_ms, ask for fewer tokens, or try again when there is less load.",
        param="timeout_ms",
    )


def slow_reader(max_unread: int) -> SemipdError:
    return SemipdError(
        "slow_reader",
        f"The client left more than {max_unread} tokens unread (limits.max_unread_tokens, divided by the "
        "alternatives of each).",
        "Read the stream as it comes.",
    )
