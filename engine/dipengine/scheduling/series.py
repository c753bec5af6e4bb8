"""Frames in order: each fit begins with the weights of the frame before it (`--warm previous`).

A frame waits until the one before it is settled. Where that has failed, the last one that was done stands in for it. Weights are kept
as long as a frame may want them: those of a frame go when all frames up to one that is done behind it are done, those of the last
frame stay, for frames to come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dipengine.scheduling.ledger import Row
from dipengine.scheduling.places import Places
from dipengine.scheduling.sources import side_outputs


class Series:
    """All chains of a batch; jobs that follow no other one are in none."""

    def __init__(self, rows: Iterable[Row], places: Places) -> None:
        self._places = places
        by_output = {row.job.output: row for row in rows}
        self._before = {row.id: by_output[row.job.after] for row in by_output.values() if row.job.after in by_output}
        self._behind = {before.id: by_output[row.job.output] for row in by_output.values() if (before := self._before.get(row.id))}

    def again(self) -> Iterable[tuple[Row, str]]:
        """Jobs that are done and have to be done again, with the reason; the caller queues each before it asks for the next.

        What follows a frame that is done again has other weights to begin with; what a frame has to begin with may be gone.
        """
        chains = list(self._chains())
        yield from self._following(chains)
        for chain in chains:
            for row in reversed(chain):
                source = self._source(row) if row.state == "queued" else None
                if source is not None and source.state == "done" and not (self._places.folder / self._weights(source)).exists():
                    yield source, "its weights are needed again"
        yield from self._following(chains)

    def _chains(self) -> Iterator[list[Row]]:
        """The frames of each series, in order."""
        for row in (self._before[number] for number in self._before if self._before[number].id not in self._before):
            chain = [row]
            while (behind := self._behind.get(chain[-1].id)) is not None:
                chain.append(behind)
            yield chain

    def _following(self, chains: Iterable[list[Row]]) -> Iterator[tuple[Row, str]]:
        for chain in chains:
            source = None
            for row in chain:
                if row.state == "done" and source is not None and source.state == "queued":
                    yield row, "the frame before it is done again"
                source = source if row.state == "failed" else row

    def ready(self, row: Row) -> bool:
        """Whether nothing has to be waited for."""
        before = self._before.get(row.id)
        return before is None or before.state in ("done", "failed")

    def behind(self, row: Row) -> Row | None:
        """The frame that waited for this one."""
        behind = self._behind.get(row.id)
        return behind if behind is not None and behind.state == "queued" else None

    def start(self, row: Row) -> dict[str, Any]:
        """What a frame's Start message says besides: where its weights come from, where its own are kept."""
        more: dict[str, Any] = {}
        source = self._source(row)
        if source is not None:
            more["previous"] = (str(self._places.folder / self._weights(source)), source.job.input)
        if (row.id in self._behind or row.id in self._before) and not row.job.request.keep_generator:
            more["keep_weights"] = self._places.weights(row.name)
        return more

    def settled(self, row: Row) -> None:
        """A frame is done: what it began with goes, unless a frame between that failed may still want it."""
        before = self._before.get(row.id)
        if before is not None and before.state == "done":
            self._places.drop_weights(before.name)

    def _source(self, row: Row) -> Row | None:
        """The last frame before this one that is done."""
        at = self._before.get(row.id)
        while at is not None and at.state == "failed":
            at = self._before.get(at.id)
        return at

    def _weights(self, row: Row) -> str:
        """Where those of a frame are when it is done, below the batch's folder."""
        return side_outputs(row.job.output)[1] if row.job.request.keep_generator else self._places.weights(row.name)
