"""What a request is admitted under, beside what it asks of the engine."""

from dataclasses import dataclass

from semipd.daemon.access.classes import Service

DEFAULT_SERVICE = Service()


@dataclass(frozen=True, slots=True)
class Terms:
    """`max_unread`: tokens its consumer may leave unread; 0: any number. `num_choices`: what was asked of the
    prompt, counted with its first choice; 0: a later one."""

    owner: str = ""
    service: Service = DEFAULT_SERVICE
    max_unread: int = 0
    num_choices: int = 1


DEFAULT_TERMS = Terms()
