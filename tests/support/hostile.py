"""A working directory that holds modules of our names and of the standard library's."""

from pathlib import Path

NAMES = (
    "json",
    "asyncio",
    "torch",
    "socket",
    "select",
    "subprocess",
    "numpy",
    "encodings",
    "uvloop",
    "msgpack",
)


def hostile_folder(folder: Path) -> Path:
    """Whatever is imported from it says so in `ran`."""
    betray = f"open({str(folder / 'ran')!r}, 'a').write(__name__ + chr(10))\n"
    for package in ("", "/commands", "/engine", "/core", "/system", "/devices", "/devices/cpu"):
        (folder / f"semipd{package}").mkdir(parents=True, exist_ok=True)
        (folder / f"semipd{package}" / "__init__.py").write_text(betray)
    for module in ("semipd/engine/__main__", "semipd/commands/daemon", "semipd/devices/cpu/worker", *NAMES):
        (folder / f"{module}.py").write_text(betray)
    return folder
