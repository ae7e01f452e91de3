"""CUDA graphs of a lane: which exist, and which is captured next.

Of decode passes there is one for each (split, batch bucket); of passes over chunks, where they are captured,
one for each (split, size of the pass, group of layers).
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from semipd.core.split import Split
from semipd.devices.cuda.driver.interface import Graph

_STEPS = (1.0, 1.5)
"""Buckets within a power of two: 16, 24, 32, 48, ... waste at most a third of the rows."""


class GraphKey(NamedTuple):
    """`bucket`: rows. `first_layer`: of the group of layers of a pass over chunks; None: a decode pass."""

    split: Split
    bucket: int
    first_layer: int | None = None


def batch_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes that have a graph, rising; the last one holds every sequence."""
    sizes = {1, 2, 4}
    power = 8
    while power < max_num_seqs:
        sizes.update(int(power * step) for step in _STEPS)
        power *= 2
    return (*sorted(size for size in sizes if size < max_num_seqs), max_num_seqs)


def bucket_for(buckets: Sequence[int], num_rows: int) -> int:
    return next(bucket for bucket in buckets if bucket >= num_rows)


class GraphTable:
    """`splits`: those that the lane may run under, most likely first. The largest bucket of a split is
    captured first: its scratch memory then serves the smaller ones. `first_layers`: of the groups."""

    def __init__(
        self, splits: Sequence[Split], buckets: Sequence[int], first_layers: Sequence[int | None] = (None,)
    ) -> None:
        keys = [
            GraphKey(split, bucket, first_layer)
            for split in splits
            for bucket in reversed(buckets)
            for first_layer in first_layers
        ]
        self._missing: dict[GraphKey, None] = dict.fromkeys(keys)
        self._graphs: dict[GraphKey, Graph] = {}
        self._misses: Counter[GraphKey] = Counter()
        self.num_hits = 0
        self.num_misses = 0

    def find(self, key: GraphKey) -> Graph | None:
        """Counts what is asked for: see `next_missing`."""
        graph = self._graphs.get(key)
        if graph is not None:
            self.num_hits += 1
        elif key in self._missing:
            self.num_misses += 1
            self._misses[key] += 1
        return graph

    def next_missing(self) -> GraphKey | None:
        """The one most often asked for in vain, else the first in order; None when all are there."""
        if self._misses:
            return self._misses.most_common(1)[0][0]
        return next(iter(self._missing), None)

    def forget_requests(self) -> None:
        """What was asked for until now was not for serving."""
        self._misses.clear()
        self.num_hits = self.num_misses = 0

    def add(self, key: GraphKey, graph: Graph) -> None:
        self._graphs[key] = graph
        self._missing.pop(key, None)
        self._misses.pop(key, None)

    def take_all(self) -> list[Graph]:
        """For destroying them; the table is empty afterwards."""
        graphs = list(self._graphs.values())
        self._graphs.clear()
        return graphs

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def num_missing(self) -> int:
        return len(self._missing)
