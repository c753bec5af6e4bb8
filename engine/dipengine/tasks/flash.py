"""Flash / no-flash: the ambient picture is noisy, the flash picture sharp but lit wrongly. The generator is fitted to the
ambient picture and fed the flash picture as z, so that what it learns first has the flash picture's edges.

Recipe: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018), section 3.4 and the authors' flash notebook.
"""

from __future__ import annotations

import numpy as np

from dipengine.errors import InputError
from dipengine.images import Image, ValueMap
from dipengine.tasks.base import Problem, Recipe, Task, TaskData, TaskOption, hourglass_128

RECIPE = Recipe(
    hourglass_128(4, ("nearest", "nearest", "bilinear", "bilinear", "bilinear"), input_depth=3),
    code="image",
    learning_rate=0.1,
    iterations=600,
    perturbation=0.0,
    stop="fixed",  # at this step size the outputs jump, and their variance has minima that mean nothing
)


class Flash(Task):
    name = "flash"
    summary = "clean a picture taken without flash by the help of one taken with it"
    options = (TaskOption("guide", "the picture taken with flash, of the input's size", "image", required=True),)

    def problem(self, data: TaskData, preset: str, *, guide: Image, guide_values: ValueMap | None = None) -> Problem:
        """guide_values: the map of the picture that `guide` is a part of, where an image is fitted in tiles."""
        height, width, _ = data.pixels.shape
        if (guide.height, guide.width) != (height, width):
            raise InputError(
                f"The guide is {guide.width}x{guide.height} and the image {width}x{height} pixels; "
                f"they must be of one size."
            )
        values = guide_values or ValueMap.for_image(guide.pixels, guide.known, data_units=guide.in_data_units)
        unit = values.to_unit(guide.pixels)  # of the guide: NumPy's always, as z travels with the generator
        if guide.known is not None:
            unit = np.where(guide.known[:, :, None], unit, np.float32(0))
        return Problem(
            self.name,
            data.pixels,
            (height, width),
            RECIPE,
            known=data.known,
            guide=unit,
            parameters={"guide_sha256": guide.sha256, "guide_value_map": values.to_dict()},
        )
