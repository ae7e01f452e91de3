"""Small traces and cases for tests of the simulator."""

from collections.abc import Iterable
from pathlib import Path

from semipd.sim.cases import Case

CONV_ROWS = [
    (round(idx * 0.13 + (idx % 7) * 0.05, 3), 30 + idx * 37 % 900, 1 + idx * 13 % 60) for idx in range(60)
]


def azure_file(
    folder: Path, rows: Iterable[tuple[float, int, int]] = CONV_ROWS, name: str = "conv.csv"
) -> Path:
    """(seconds below 60, prompt tokens, output tokens) in the form of the Azure 2023 traces."""
    path = folder / name
    lines = [f"2023-11-16 18:15:{at_s:010.7f},{prompt},{output}" for at_s, prompt, output in rows]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    return path


def azure_case(folder: Path, policy: str = "fixed:64", rate: float = 8.0, **changes: object) -> Case:
    """A short case on `azure_file`."""
    path = folder / "conv.csv"
    if not path.exists():
        azure_file(folder)
    fields = {"ttft_ms": 500.0, "tpot_ms": 25.0, "window_s": 10.0} | changes
    return Case(trace=str(path), form="azure", policy=policy, rate=rate, **fields)  # type: ignore[arg-type]
