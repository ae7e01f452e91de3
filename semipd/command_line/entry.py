"""Where the commands begin. Until a command says what Ctrl-C means to it, the system ends it without a word:
an interrupt in the middle of an import would print a traceback."""

# `signal` takes as long to import as all that comes before
import _signal  # type: ignore[import-not-found]

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def daemon() -> int:
    return _run("semipd.cli")


def client() -> int:
    return _run("semipd.client.cli")


def top() -> int:
    return _run("semipd_top.cli")


def _run(module: str) -> int:
    from importlib import import_module

    code: int = import_module(module).main()
    return code
