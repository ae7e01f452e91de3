"""Pictures of results, by matplotlib, which nothing else needs. It is imported when one is wanted."""

from importlib import import_module
from pathlib import Path
from typing import Any

from semipd.core.errors import SemipdError


def load_matplotlib(option: str) -> Any:
    """matplotlib.figure, without touching a display. Raises SemipdError(`matplotlib_missing`)."""
    try:
        return import_module("matplotlib.figure")
    except ImportError as error:
        message = f"{option} needs matplotlib, which is not installed."
        hint = f"Install it (pip install matplotlib), or leave {option} out."
        raise SemipdError("matplotlib_missing", message, hint) from error


def save_figure(figure: Any, path: Path) -> None:
    """A PNG, or what the suffix says. Raises SemipdError(`cannot_write`)."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise SemipdError("cannot_write", f"{path} cannot be written: {error}.") from error
