"""From a command's body to its exit code, whatever becomes of standard output, signals and the system."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from semipd.command_line.exit_codes import DONE, INTERRUPTED, exit_code_of
from semipd.command_line.streams import flush, prepare_streams, printable
from semipd.core.errors import SemipdError

Body = Callable[[Sequence[str]], int]


def run_command(body: Body, argv: Sequence[str] | None, text_of: Callable[[SemipdError], str]) -> int:
    """Run `body` with these arguments, and return its exit code. An error is one message on standard error,
    as `text_of` writes it. `argv` None: this is the process' own command, whose streams and signals are ours.
    Raises SystemExit as argparse does."""
    if argv is not None:
        return _interruptible(body, argv, text_of)
    prepare_streams()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _interruptible(body, sys.argv[1:], text_of)
    finally:
        # from here on there is nothing to tidy up
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interruptible(body: Body, argv: Sequence[str], text_of: Callable[[SemipdError], str]) -> int:
    try:
        return _run(body, argv, text_of)
    except KeyboardInterrupt:
        flush(sys.stdout)
        return INTERRUPTED
    finally:
        flush(sys.stderr)


def _run(body: Body, argv: Sequence[str], text_of: Callable[[SemipdError], str]) -> int:
    code: int = DONE
    problem: SemipdError | None = None
    unwritten: OSError | None = None
    wants_out: SystemExit | None = None
    try:
        code = body(argv)
    except SystemExit as end:
        wants_out = end
    except SemipdError as error:
        problem = error
    except BrokenPipeError as error:
        unwritten = error
    except OSError as error:
        is_refusal = isinstance(error, PermissionError)
        problem = SemipdError("permission_denied" if is_refusal else "system_error", f"{error}.")
    unwritten = flush(sys.stdout) or unwritten
    if isinstance(unwritten, BrokenPipeError) and problem is None:
        return code
    if unwritten is not None and not isinstance(unwritten, BrokenPipeError):
        why = unwritten.strerror or unwritten
        problem = SemipdError("output_unwritable", f"Standard output cannot be written ({why}).")
    if problem is not None:
        with suppress(OSError):
            print(printable(text_of(problem)), file=sys.stderr)
        return exit_code_of(problem)
    if wants_out is not None:
        raise wants_out
    return code
