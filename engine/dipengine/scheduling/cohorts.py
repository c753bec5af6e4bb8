"""The plans that a worker's fits run in: those of one canvas and one set of parameters share one, a slot each.

A slot is free in the moment that its fit leaves, and the next image takes it without a byte being taken. A worker of one slot keeps
the last plan, where it is small beside the memory, for the image that comes next.
"""

from __future__ import annotations

from dataclasses import dataclass

from dipengine.errors import OutOfMemory
from dipengine.fitting.device import memory_errors
from dipengine.fitting.native_cohort import NativeCohort, cohort_bytes, cohort_key
from dipengine.restoration import Plan
from dipengine.scheduling.memory import image_bytes, planned_bytes

_KEPT = 32  # an idle plan takes no more than this part of the budget: nobody counts it


@dataclass(frozen=True)
class Room:
    """What a fit is given when it asks for memory. cohort: None, memory of its own."""

    cohort: NativeCohort | None = None


class Cohorts:
    """All plans of one worker."""

    def __init__(self, slots: int = 1, budget: int | None = None) -> None:
        """slots: fits at once. budget: bytes that all plans may take together; None: unknown."""
        self._slots = slots
        self._budget = budget
        self._cohorts: list[NativeCohort] = []
        self._lone = 0  # fits with memory of their own

    def bytes_of(self, plan: Plan) -> int:
        """That a fit will hold: its share of a plan that is full, and the images around it."""
        if self._slots == 1 or self._key(plan) is None:
            return planned_bytes(plan)
        slots = self._slots_for(plan)
        return -(-self._bytes(plan, slots) // slots) + image_bytes(plan)

    def room_for(self, plan: Plan) -> Room | None:
        """Where a fit can run; None: it has to wait until others have left. Raises OutOfMemory."""
        key = self._key(plan)
        if key is None or (self._slots == 1 and not self._is_small(self._bytes(plan, 1))):
            if self._lone and self._slots > 1:
                return None  # nobody knows what such a fit takes: one at a time
            self._lone += 1
            return Room()
        for cohort in self._cohorts:
            if cohort.key == key and cohort.free:
                return Room(cohort)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.open_slots]
        slots = self._slots_for(plan)
        held = sum(cohort.arena_bytes for cohort in self._cohorts)
        if self._cohorts and self._budget is not None and held + self._bytes(plan, slots) > self._budget:
            return None
        cohort = self._made(plan, slots)
        self._cohorts.append(cohort)
        return Room(cohort)

    def _made(self, plan: Plan, slots: int) -> NativeCohort:
        """With half of the slots, and again half, where the memory is not there all the same."""
        try:
            with memory_errors():
                return NativeCohort(plan.problem, plan.recipe, plan.placement, plan.stop, slots)
        except OutOfMemory:
            if slots == 1:
                raise
        self._slots = slots // 2
        return self._made(plan, slots // 2)

    def left(self, room: Room) -> None:
        """A fit has closed its slot, or given back what it had."""
        self._lone -= room.cohort is None
        self._cohorts = [cohort for cohort in self._cohorts if cohort.open_slots or self._is_small(cohort.arena_bytes)]

    def _is_small(self, needed: int) -> bool:
        return self._budget is not None and needed <= self._budget // _KEPT

    def _key(self, plan: Plan) -> str | None:
        return cohort_key(plan.problem, plan.recipe, plan.placement, plan.stop)

    def _bytes(self, plan: Plan, slots: int) -> int:
        return cohort_bytes(plan.problem, plan.recipe, plan.placement, plan.stop, slots)

    def _slots_for(self, plan: Plan) -> int:
        """As many as there are, or as many as the memory has room for."""
        if self._budget is None:
            return self._slots
        one, two = self._bytes(plan, 1), self._bytes(plan, 2)
        return max(1, min(self._slots, 1 + (self._budget - one) // (two - one)))
