"""Who sends a request, and what they may see."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """`name`: of an API key, or `uid:N` of a guest on the Unix socket; empty: nobody in particular, that is
    a client of a daemon without keys, or the daemon's own user. Operators see and end everybody's requests.
    """

    name: str = ""
    is_operator: bool = False

    def owns(self, owner: str) -> bool:
        return self.is_operator or self.name == owner


OPERATOR = Caller(is_operator=True)
