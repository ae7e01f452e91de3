"""Where the commands begin. Until a command says what Ctrl-C means to it, the system ends it without a word:
an interrupt in the middle of an import would print a traceback."""

import signal
from importlib import import_module


def daemon() -> int:
    return _run("semipd.cli")


def client() -> int:
    return _run("semipd.client.cli")


def top() -> int:
    return _run("semipd_top.cli")


def _run(module: str) -> int:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    code: int = import_module(module).main()
    return code
