"""semipd-client: generate text and ask for status over the daemon's Unix socket."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semipd.client.aio import AsyncClient
from semipd.core.errors import SemipdError

_OPTIONS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "ignore_eos")


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        code: int = asyncio.run(args.run(args))
        return code
    except SemipdError as error:
        print(f"error: {error} [{error.code}]", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--socket", type=Path, help="the daemon's Unix socket")
    common.add_argument("--json", action="store_true", help="print what the daemon sends, as JSON")
    parser = argparse.ArgumentParser(prog="semipd-client", description="Talk to a running semipd daemon.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", parents=[common], help="continue a text")
    generate.set_defaults(run=_generate)
    generate.add_argument("prompt", help="the text to continue; -: read it from standard input")
    generate.add_argument("--chat", action="store_true", help="send the prompt as a user's message")
    generate.add_argument("--max-tokens", type=int, help="default: as many as the context holds")
    generate.add_argument("--temperature", type=float)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--seed", type=int)
    generate.add_argument("--stop", action="append", help="end before this text; may be repeated")
    generate.add_argument("--ignore-eos", action="store_true", default=None)
    status = commands.add_parser("status", parents=[common], help="show what the daemon does")
    status.set_defaults(run=_status)
    return parser


async def _generate(args: argparse.Namespace) -> int:
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    options: dict[str, Any] = {name: getattr(args, name) for name in _OPTIONS}
    asked = {"messages": [{"role": "user", "content": text}]} if args.chat else {"prompt": text}
    async with (
        await AsyncClient.connect(args.socket) as client,
        client.generate(**asked, **options) as stream,
    ):
        async for item in stream:
            line = json.dumps(item.to_wire(stream.id)) + "\n"
            print(line if args.json else item.text, end="", flush=True)
    if not args.json:
        print()
    return 0


async def _status(args: argparse.Namespace) -> int:
    async with await AsyncClient.connect(args.socket) as client:
        status = await client.status()
    if args.json:
        print(json.dumps(status))
        return 0
    width = max(map(len, status))
    for name, value in status.items():
        shown = value if isinstance(value, str | int | float) else json.dumps(value)
        print(f"{name:{width}}  {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
