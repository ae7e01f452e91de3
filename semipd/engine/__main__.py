"""Entry of the engine process: `python -m semipd.engine <parent pid> <link fd>`."""

import os
import sys

from semipd.system.parent_death import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), int(sys.argv[2]))
    from semipd.engine.process import run_engine

    code = run_engine(int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
