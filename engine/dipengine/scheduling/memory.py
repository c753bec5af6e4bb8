"""Bytes that a fit will hold, known before it starts."""

from __future__ import annotations

from dipengine.fitting import native_fit
from dipengine.restoration import Plan

_COPIES = 8 * 8  # of the image, float64: what reading, mapping, measuring and delivering hold beside the fit, at most


def planned_bytes(plan: Plan) -> int:
    """Of the plan's arena, of a checkpoint on its way out, and of the images around them.

    Of a fit on autograd PyTorch alone could tell: the images are counted, and what it takes is found out by running it.
    """
    if not native_fit.supports(plan.problem, plan.recipe, plan.placement):
        return image_bytes(plan)
    arena, state = native_fit.planned_bytes(plan.problem, plan.recipe, plan.placement, plan.stop)
    return arena + 2 * state + image_bytes(plan)


def image_bytes(plan: Plan) -> int:
    """Of the images around a fit."""
    height, width = plan.problem.output_shape
    return _COPIES * height * width * plan.problem.channels
