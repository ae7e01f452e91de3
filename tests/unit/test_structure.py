"""The house keeps its measures: how many rooms, files, lines. `docs/structure.md` names every room."""

import ast
import statistics
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("semipd", "tui", "kernels", "scripts")
MAX_FILES = {"scripts": 25}
MOST_FILES, MOST_LINES, LONGEST_FUNCTION, MEDIAN_FUNCTION = 15, 350, 60, 6
KERNELS = "kernels"  # their functions are as long as their algorithm


@cache
def everything() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", *PRODUCT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return tuple(path for name in listed.stdout.splitlines() if (ROOT / (path := Path(name))).exists())


def files() -> tuple[Path, ...]:
    return tuple(path for path in everything() if path.suffix == ".py")


def functions(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{path}:{node.name}"


def test_folders_are_rooms_and_files_have_one_concept() -> None:
    folders: dict[Path, int] = {}
    for path in everything():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    full = {str(at): n for at, n in folders.items() if n > MAX_FILES.get(str(at), MOST_FILES)}
    lines = {str(path): len((ROOT / path).read_text().splitlines()) for path in files()}
    long = {path: n for path, n in lines.items() if n > MOST_LINES}
    assert not full, f"more than {MOST_FILES} files: {full}"
    assert not long, f"more than {MOST_LINES} lines: {long}"


def test_functions_fit_in_a_hands_breadth() -> None:
    lengths = [pair for path in files() if path.parts[0] != KERNELS for pair in functions(path)]
    assert statistics.median(length for length, _ in lengths) <= MEDIAN_FUNCTION
    assert max(lengths)[0] <= LONGEST_FUNCTION, max(lengths)


def test_the_map_names_every_room() -> None:
    page = (ROOT / "docs" / "structure.md").read_text()
    rooms = {str(path.parent) for path in files() if path.parts[0] in ("semipd", "tui")}
    missing = sorted(room for room in rooms - {"semipd"} if f"`{room}/`" not in page)
    assert not missing, f"docs/structure.md does not say what these are for: {missing}"


def test_the_numbers_of_rooms() -> None:
    for parent, most in (("semipd/daemon", 12), ("semipd/devices/cuda", 8)):
        rooms = {path.parent for path in files() if path.parent.parent == Path(parent)}
        assert 1 < len(rooms) <= most, f"{parent} has {len(rooms)} rooms"
