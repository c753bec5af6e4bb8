"""The jobs that wait: by priority, then by the order of the ledger; those of one canvas can be had together."""

from __future__ import annotations

import heapq
from collections import defaultdict
from itertools import count

from dipengine.scheduling.ledger import Row

Item = tuple[int, int, int, Row]


class Backlog:
    """A job is in two heaps, that of all and that of its canvas; whichever gives it first, the other skips it."""

    def __init__(self) -> None:
        self._all: list[Item] = []
        self._lanes: defaultdict[object, list[Item]] = defaultdict(list)
        self._count = count()
        self._waiting: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, row: Row) -> None:
        """A redo keeps its place in front of those that never ran."""
        # The count keeps heaps from comparing rows: one that is put back may lie in its lane still.
        item = (-row.job.priority, row.order, next(self._count), row)
        self._waiting.add(row.id)
        heapq.heappush(self._all, item)
        if row.canvas is not None:
            heapq.heappush(self._lanes[row.canvas], item)

    def take(self, canvas: object = None) -> Row | None:
        """The next job; one of `canvas` where there is one of the same priority."""
        first = self._first(self._all)
        if first is None:
            return None
        if canvas is not None:
            lane = self._lanes.get(canvas)
            same = self._first(lane) if lane else None
            if same is not None and same[0] == first[0]:
                first = same
        self._waiting.discard(first[3].id)
        return first[3]

    def _first(self, heap: list[Item]) -> Item | None:
        while heap and heap[0][3].id not in self._waiting:
            heapq.heappop(heap)
        return heap[0] if heap else None
