"""Key files for tests."""

from pathlib import Path
from typing import Any

ANN, BOB, OPS = "ann-key-0123456789", "bob-key-0123456789", "ops-key-0123456789"


def write_keys(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def key_settings(tmp_path: Path) -> dict[str, Any]:
    """For two tenants and an operator."""
    return {
        "auth.keys_file": write_keys(tmp_path / "keys", f"ann:{ANN}\nbob:{BOB}\n"),
        "auth.operations_keys_file": write_keys(tmp_path / "ops", f"eve:{OPS}\n"),
    }
