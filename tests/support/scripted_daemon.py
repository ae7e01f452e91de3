"""A whole daemon process around a scripted engine: `python scripted_daemon.py MODEL SOCKET SCRIPT`."""

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.scripted_engine import scripted
else:
    from scripted_engine import scripted

from semipd.config.config import Override, load_config
from semipd.daemon.app import run

if __name__ == "__main__":
    model, socket_path, text = sys.argv[1:]
    script = json.loads(text)
    given = {
        "model.name": model,
        "engine.device": "fake",  # it has no weights
        "server.socket": socket_path,
        "server.port": "0",
        "supervision.backoff_s": "0.02",
        **script.pop("settings", {}),
    }
    config = load_config(overrides=[Override(key, text, "test") for key, text in given.items()])
    sys.exit(run(config, scripted(**script)))
