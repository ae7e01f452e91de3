"""Limits that containers set, read from cgroup v1 and v2 file systems."""

from pathlib import Path

ROOT = Path("/")


def cgroup_dirs(controller: str, root: Path = ROOT) -> list[Path]:
    """Our cgroup's folder for `controller` and its ancestors: a limit of any of them binds us.

    In a container the path in /proc/self/cgroup may not exist below the mount; then only the mount counts.
    """
    dirs: list[Path] = []
    for line in _read_lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        own = mount / path.lstrip("/")
        dirs += [own, *(parent for parent in own.parents if parent.is_relative_to(mount))]
    return [folder for folder in dirs if folder.is_dir()]


def read_int(path: Path) -> int | None:
    """The file's number; None when the file is missing or says something else ("max")."""
    lines = _read_lines(path)
    return int(lines[0]) if lines and lines[0].lstrip("-").isdigit() else None


def read_table(path: Path) -> dict[str, int]:
    """Lines of "name number", as in memory.stat; "name: number kB" of /proc/meminfo gives kB."""
    words = [line.split() for line in _read_lines(path)]
    return {entry[0].rstrip(":"): int(entry[1]) for entry in words if len(entry) >= 2 and entry[1].isdigit()}


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs' worth of time that the tightest cgroup grants us; None: no limit."""
    quotas: list[float] = []
    for folder in cgroup_dirs("cpu", root):
        for line in _read_lines(folder / "cpu.max"):
            quota, _, period = line.partition(" ")
            if quota.isdigit():
                quotas.append(int(quota) / int(period))
        v1_quota, v1_period = read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us")
        if v1_quota is not None and v1_period is not None and v1_quota > 0:
            quotas.append(v1_quota / v1_period)
    return min(quotas, default=None)


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
