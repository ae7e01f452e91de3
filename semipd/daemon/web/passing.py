"""What a handler of failures lets through."""

import asyncio

PASSING = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)
"""They end a task or the process; nobody answers them. Every other BaseException is a failure: extension
modules may raise what is no Exception."""
