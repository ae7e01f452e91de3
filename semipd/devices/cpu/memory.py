"""Memory that outlives no process: how much there is, and memfds that engine and workers share."""

import mmap
import os
from pathlib import Path
from typing import NamedTuple

import torch

from semipd.core.errors import SemipdError
from semipd.devices.cpu.cgroups import ROOT, cgroup_dirs, read_int, read_table


class Available(NamedTuple):
    """`source` names the tightest limit."""

    num_bytes: int
    source: str


def available_memory(root: Path = ROOT) -> Available:
    """What can be allocated now: the least of MemAvailable and what each cgroup limit leaves."""
    free = [Available(read_table(root / "proc/meminfo").get("MemAvailable", 0) * 1024, "MemAvailable")]
    for folder in cgroup_dirs("memory", root):
        for limit_name, usage_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = read_int(folder / limit_name), read_int(folder / usage_name)
            if limit is not None and usage is not None:
                # Page cache that nobody uses counts as usage but goes away when memory is asked for.
                cache = read_table(folder / "memory.stat").get(cache_name, 0)
                free.append(Available(max(0, limit - usage + cache), f"cgroup limit {folder / limit_name}"))
    return min(free)


class SharedMemory:
    """Bytes in a memfd: no /dev/shm limit, and gone with the last process that holds it.

    Not thread-safe. The owner closes; tensors stay valid until they are dropped.
    """

    def __init__(self, fd: int, num_bytes: int) -> None:
        self.fd = fd
        self.num_bytes = num_bytes

    @classmethod
    def reserve(cls, name: str, num_bytes: int) -> "SharedMemory":
        """Allocate every page now, so that no worker dies of a page fault later.

        Raises SemipdError(`insufficient_memory`) when the kernel refuses.
        """
        fd = os.memfd_create(f"semipd-{name}", os.MFD_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, num_bytes)
        except OSError as error:
            os.close(fd)
            raise SemipdError(
                "insufficient_memory",
                f"The kernel did not reserve {num_bytes} bytes for the {name} ({error.strerror}).",
                "Free memory, or lower kv_bytes, max_model_len or max_num_seqs.",
            ) from error
        return cls(fd, num_bytes)

    def tensor(self) -> torch.Tensor:
        """All bytes, uint8 [num_bytes], shared with every process that maps this memory."""
        return torch.frombuffer(mmap.mmap(self.fd, self.num_bytes), dtype=torch.uint8)

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
