"""JPEG artefacts: fitted as noise of unknown kind, by a slim generator whose prior removes blocks before it learns them.

Recipe: the authors' restoration of `snail.jpg` (channels 8 to 128, z of depth 3).
"""

from __future__ import annotations

from dipengine.generators.architecture import Hourglass
from dipengine.tasks.base import Problem, Recipe, Task, TaskData

RECIPE = Recipe(
    Hourglass(
        input_depth=3,
        channels_down=(8, 16, 32, 64, 128),
        channels_up=(8, 16, 32, 64, 128),
        channels_skip=(0, 0, 0, 4, 4),
        upsample=("bilinear",) * 5,
    ),
    iterations=2400,
    perturbation=1 / 30,
    average_decay=0.99,
)


class Dejpeg(Task):
    name = "dejpeg"
    summary = "remove JPEG artefacts"

    def problem(self, data: TaskData, preset: str) -> Problem:
        return Problem(self.name, data.pixels, data.pixels.shape[:2], RECIPE, known=data.known)
