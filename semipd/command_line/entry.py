"""Where the commands begin. Until a command says what Ctrl-C means to it, the system ends it without a word:
an interrupt in the middle of an import would print a traceback."""

# pathlib could be the working directory's
# ruff: noqa: PTH100, PTH117

# `signal` takes as long to import as all that comes before
import _signal  # type: ignore[import-not-found]
import os
import sys

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def _forget_working_folder() -> None:
    """What empty and relative entries of PYTHONPATH mean is not searched for modules: Python has made them
    absolute. But this semipd may have been found so."""
    paths = os.environ.get("PYTHONPATH")
    given = paths.split(os.pathsep) if paths else []
    relative = {os.path.abspath(entry) for entry in given if not os.path.isabs(entry)}
    ours = os.path.abspath(__file__).removesuffix("/semipd/command_line/entry.py")
    dropped = relative.difference(given, [ours])
    sys.path[:] = [entry for entry in sys.path if entry not in dropped]


_forget_working_folder()


def daemon() -> int:
    return _run("semipd.commands.daemon")


def client() -> int:
    return _run("semipd.commands.client")


def top() -> int:
    return _run("semipd_top.cli")


def plan() -> int:
    return _run("semipd.plan.command")


def _run(module: str) -> int:
    from importlib import import_module

    code: int = import_module(module).main()
    return code
