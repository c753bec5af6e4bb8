"""The record: one JSON object that says all that is needed to make a result again, and what was measured."""

from __future__ import annotations

import hashlib
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine._version import __version__
from dipengine.fitting.native_fit import NativeFit
from dipengine.fitting.outcome import Outcome
from dipengine.fitting.run import FitRun
from dipengine.fitting.settings import Settings
from dipengine.fitting.stopping import StopRule
from dipengine.images import Image
from dipengine.images.namespaces import on_host
from dipengine.kernels import backend

if TYPE_CHECKING:
    from dipengine.restoration import Plan

FORMAT = 1


def make_record(
    image: Image,
    task: str,
    settings: Settings,
    plan: "Plan",
    run: FitRun,
    outcome: Outcome,
    measured: dict[str, float | None],
) -> dict[str, Any]:
    """The record of a finished fit (JSON-able; `psnr` and `ssim` are null without the truth)."""
    fit, recipe = run.fit, run.fit.recipe
    known = plan.problem.known
    losses = outcome.history.loss
    height, width, channels = image.pixels.shape
    return {
        "format": FORMAT,
        "version": __version__,
        "task": task,
        "preset": settings.preset,
        "parameters": {
            **plan.problem.parameters,
            "iterations": recipe.iterations,
            "stop": plan.stop,
            "stop_rule": _stop_rule(plan, run),
            "held_out_pixels": fit.held_out,
            "learning_rate": recipe.learning_rate,
            "perturbation": recipe.perturbation,
            "average_decay": recipe.average_decay,
            "average_warm_up": recipe.average_warm_up,
            "rollback_db": recipe.rollback_db,
            "code": fit.code.to_dict(),
            "generator": recipe.generator.to_dict(),
        },
        "input": {
            "source": image.source or None,
            "sha256": image.sha256 or None,  # none of an array that stayed on its device
            "width": width,
            "height": height,
            "channels": channels,
            "dtype": image.dtype_name,
            # Of the mask of known pixels, one bit a pixel, rows run together (NumPy's packbits).
            "known_sha256": None if known is None else hashlib.sha256(np.packbits(on_host(known)).tobytes()).hexdigest(),
        },
        "value_map": plan.values.to_dict(),
        "canvas": list(fit.canvas),
        "iterations": outcome.iterations,
        "delivered_iteration": outcome.best_iteration,
        "stop_reason": outcome.stop_reason,
        "rollbacks": outcome.rollbacks,
        "init_from": run.init.to_dict() if run.init is not None else None,
        "resumed_at": run.resumed_at,  # the iteration at which a saved fit was taken up last
        "seconds": outcome.seconds,
        "seconds_per_iteration": outcome.seconds / outcome.iterations if outcome.iterations else None,
        "loss": _finite(losses[-1]) if losses else None,
        "psnr_peak": measured.get("psnr_peak"),
        "psnr_input": _finite(measured.get("psnr_input")),
        "psnr": _finite(measured.get("psnr")),
        "ssim": _finite(measured.get("ssim")),
        "device": plan.placement.device,
        "precision": plan.placement.precision,
        "kernels": plan.placement.kernels,
        "path": "plan" if isinstance(fit, NativeFit) else "autograd",
        "instruction_set": backend.instruction_set(),
        "threads": plan.placement.threads,
        "seed": settings.seed,
        "peak_memory_bytes": _peak_memory_bytes(plan, run),
    }


def _peak_memory_bytes(plan: "Plan", run: FitRun) -> int | None:
    """Of a plan on a GPU its arena, which is all that it takes there."""
    on_gpu = isinstance(run.fit, NativeFit) and plan.placement.device != "cpu"
    return run.fit.arena_bytes if on_gpu else peak_memory_bytes(plan.placement.device)


def _stop_rule(plan: "Plan", run: FitRun) -> dict[str, Any] | None:
    """The thresholds of stop="auto", in iterations, and ES-EMV's weight of a new output."""
    if plan.stop != "auto":
        return None
    rule = StopRule.for_recipe(run.fit.recipe, warm_start=run.init is not None)
    shown = {}
    if run.fit.held_out:
        rule = rule.with_pixels_held_out()
        shown = {"shown_for": rule.shown_for}
    return {**asdict(rule), **shown, "es_alpha": run.fit.es_alpha}


def _finite(value: float | None) -> float | None:
    """JSON has no infinities: identical images have no PSNR to state."""
    return value if value is not None and math.isfinite(value) else None


def peak_memory_bytes(device: str) -> int | None:
    """Most memory held so far: of the process on the CPU, of PyTorch's allocator on a GPU."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows has no getrusage
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
