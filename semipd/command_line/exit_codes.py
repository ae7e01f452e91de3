"""What the commands' exit codes mean: one table for all of them."""

from typing import NamedTuple

from semipd.core.errors import SemipdError

DONE = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
NO_PERMISSION = 4
TIMED_OUT = 5
CONNECTION_LOST = 6
INTERRUPTED = 130
TERMINATED = 143


class Exit(NamedTuple):
    """`codes`: of the errors that end a command so."""

    number: int
    meaning: str
    codes: tuple[str, ...] = ()


EXITS = (
    Exit(DONE, "done; also when the reader of the output has seen enough"),
    Exit(FAILED, "failed, or refused by the daemon: the message says why"),
    Exit(
        USAGE,
        "wrong usage or configuration",
        (
            "config_not_found",
            "config_unreadable",
            "conflicting_options",
            "invalid_config",
            "invalid_environment",
            "no_terminal",
            "not_text",
            "unknown_option",
            "unknown_theme",
        ),
    ),
    Exit(NOT_RUNNING, "no daemon is running", ("daemon_not_running",)),
    Exit(
        NO_PERMISSION,
        "permission denied, by the system or by the daemon",
        ("class_not_allowed", "operator_required", "peer_not_allowed", "permission_denied"),
    ),
    Exit(TIMED_OUT, "no answer in time", ("daemon_silent", "deadline_exceeded", "stop_timeout")),
    Exit(
        CONNECTION_LOST,
        "the connection was lost, or what answers is no daemon of this version",
        (
            "connection_lost",
            "frame_too_large",
            "hello_expected",
            "malformed_answer",
            "malformed_frame",
            "protocol_version",
        ),
    ),
    Exit(INTERRUPTED, "Ctrl-C"),
    Exit(TERMINATED, "SIGTERM"),
)

_BY_CODE = {code: exit.number for exit in EXITS for code in exit.codes}

EPILOG = "exit codes:\n" + "\n".join(f"  {exit.number:<5}{exit.meaning}" for exit in EXITS)


def exit_code_of(error: SemipdError) -> int:
    return _BY_CODE.get(error.code, FAILED)
