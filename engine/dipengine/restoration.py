"""From an image to a restored one: value map, task, preset, fit, delivery, record. Command line and Python both end here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine.errors import InputError
from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting import metrics, native_fit
from dipengine.fitting.checkpoint import Keeper
from dipengine.fitting.device import Placement, for_autograd, place, require_torch
from dipengine.fitting.outcome import History
from dipengine.fitting.progress import ProgressCallback
from dipengine.fitting.record import make_record
from dipengine.fitting.run import FitRun
from dipengine.fitting.settings import Settings
from dipengine.fitting.warm_start import WarmStart
from dipengine.images import Image, ValueMap
from dipengine.images.arrays import digest
from dipengine.images.image import opaque
from dipengine.images.namespaces import any_true, beside, cast, choose, extremes, namespace, on_host
from dipengine.tasks import Problem, Recipe, TaskData, apply_overrides, apply_preset, task_named
from dipengine.tasks.presets import preset_named

if TYPE_CHECKING:
    from dipengine.fitting.native_cohort import NativeCohort


_UNIT_TOP = 2.0  # what noise may make of 1
_INTEGER_TOP = 32  # no picture of integers is darker throughout


@dataclass(frozen=True)
class Restoration:
    """A restored image with what led to it."""

    pixels: Any  # [H, W, C], the input's library, device, dtype and units
    alpha: Any  # [H, W] beside it, or None
    scale: int  # output size over input size
    history: History
    generator: FittedGenerator
    record: dict[str, Any]

    def on_host(self) -> Restoration:
        """The same with its arrays in NumPy's hands, for encoders and other processes; itself where they are there."""
        if isinstance(self.pixels, np.ndarray):
            return self
        alpha = None if self.alpha is None else on_host(self.alpha)
        generator = replace(self.generator, delivered=on_host(self.generator.delivered))
        return replace(self, pixels=on_host(self.pixels), alpha=alpha, generator=generator)


@dataclass(frozen=True)
class Plan:
    """Everything decided before the first iteration."""

    problem: Problem
    recipe: Recipe
    stop: str
    values: ValueMap
    placement: Placement


def plan_restoration(
    image: Image, task: str, options: Mapping[str, Any], settings: Settings, *, values: ValueMap | None = None
) -> Plan:
    """Decide value map (`values`, where the image is a part of one that has it), problem, recipe, stop rule and placement.

    Raises InputError or DeviceError.
    """
    preset = preset_named(settings.preset)
    mask = options.get("mask")
    known = image.known
    if mask is not None and tuple(mask.shape) == tuple(image.pixels.shape[:2]):
        # A float image's range is that of its known pixels: what hides under the mask must not stretch it.
        left = ~mask if options.get("invert_mask") else mask
        known = left if known is None else known & left
        if not any_true(known):
            raise InputError("The mask leaves no pixel known; white means known, --invert-mask turns a mask around.")
    values = values or task_named(task).value_map(image, known, settings.value_range, options)
    data = TaskData(values.to_unit(image.pixels), image.known, _unit_alpha(image), values, settings.seed, image.metadata.jpeg)
    problem = task_named(task).problem(data, settings.preset, **options)
    recipe = apply_overrides(
        apply_preset(problem.recipe, settings.preset),
        iterations=settings.iterations,
        levels=settings.levels,
        channels=settings.channels,
        skips=settings.skips,
        upsample=settings.upsample,
    )
    placement = place(settings)
    if not native_fit.supports(problem, recipe, placement):
        require_torch()
        placement = for_autograd(placement, settings)
    return Plan(problem, recipe, settings.stop or recipe.stop or preset.stop, values, placement)


class RunningRestoration:
    """A restoration whose fit somebody else advances: `run` is the fit, `finish` makes of it what the user is given."""

    def __init__(
        self, image: Image, task: str, settings: Settings, plan: Plan, truth: Image | None = None,
        init: WarmStart | None = None, cohort: NativeCohort | None = None,
    ) -> None:
        self.image = image
        self.task = task
        self.settings = settings
        self.plan = plan
        self.truth = truth
        if truth is not None:
            check_truth(image, truth, plan.problem.shape)
            check_units(plan.values, image, truth)
            self._peak = psnr_peak(plan.values, settings, image, truth)
        self.run = FitRun(
            plan.problem,
            plan.recipe,
            stop=plan.stop,
            seed=settings.seed,
            placement=plan.placement,
            measure=self._psnr if truth is not None else None,
            init=init,
            cohort=cohort,
        )

    def _psnr(self, unit: Any) -> float:
        return metrics.psnr(self.plan.values.from_unit(unit, np.float64), self.truth.pixels, self._peak, self.truth.known)

    @property
    def owner(self) -> dict[str, Any]:
        """By which a checkpoint knows whose fit it is, besides the fit's own settings."""
        truth = digest(self.truth) if self.truth is not None else None
        return {"task": self.task, "input": digest(self.image), "truth": truth, "value_map": self.plan.values.to_dict()}

    def keeper(self, path: str | os.PathLike, every: float, on_problem: Callable[[str], None]) -> Keeper:
        """Of this restoration's checkpoint file."""
        return Keeper(path, self.owner, every=every, on_problem=on_problem)

    def complete(
        self, progress: ProgressCallback | None = None, keeper: Keeper | None = None, *, keep_on_interrupt: bool = False
    ) -> Restoration:
        """Run the fit to its end, from the checkpoint where there is one, and finish.

        With `keep_on_interrupt` a KeyboardInterrupt ends the fit and delivers what there is; otherwise it propagates. The
        checkpoint stays: it is removed by whoever has put the result in safety.
        """
        try:
            if keeper is None:
                self.run.advance(self.run.ceiling, progress)
            else:
                keeper.take_up(self.run)
                keeper.advance(self.run, progress)
        except KeyboardInterrupt:
            if not keep_on_interrupt or self.run.iteration == 0:
                raise
        return self.finish()

    def finish(self, reason_if_unfinished: str = "interrupted") -> Restoration:
        """What the fit delivers as it stands, in the image's units, with its record. At least one iteration must have run."""
        image, plan, fit = self.image, self.plan, self.run.fit
        problem, values = plan.problem, plan.values
        outcome = self.run.outcome(reason_if_unfinished)
        pixels = values.from_unit(outcome.image, image.pixels.dtype)
        if problem.keep_known and problem.known is not None:
            pixels = choose(problem.known[:, :, None], image.pixels, pixels)
        generator = FittedGenerator(
            task=self.task,
            architecture=fit.recipe.generator,
            parameters=outcome.weights,
            code=fit.code,
            canvas=fit.canvas,
            crop=problem.shape[:2],
            origin=problem.origin,
            values=values,
            dtype=image.dtype_name,
            delivered=outcome.image,
            source_sha256=image.sha256 or None,
            iteration=outcome.best_iteration,
            seed=self.settings.seed,
        )
        measured = _measure(pixels, image, self.truth, self._peak) if self.truth is not None else {}
        record = make_record(image, self.task, self.settings, plan, self.run, outcome, measured)
        return Restoration(pixels, _delivered_alpha(image, problem), problem.scale, outcome.history, generator, record)


def begin_restoration(
    image: Image,
    task: str,
    options: Mapping[str, Any],
    settings: Settings,
    plan: Plan | None = None,
    *,
    truth: Image | None = None,
    init: WarmStart | None = None,
    cohort: NativeCohort | None = None,
) -> RunningRestoration:
    """Plan the restoration (unless that is done) and take the fit's memory; nothing is run. Arguments and errors as of
    `restore_image`; init: weights to begin with, InputError where they are of another network. cohort: as of `FitRun`.
    """
    plan = plan or plan_restoration(image, task, options, settings)
    return RunningRestoration(image, task, settings, plan, truth, init, cohort)


def restore_image(
    image: Image,
    task: str,
    options: Mapping[str, Any],
    settings: Settings,
    *,
    truth: Image | None = None,
    progress: ProgressCallback | None = None,
    keep_on_interrupt: bool = False,
    plan: Plan | None = None,
) -> Restoration:
    """Restore one image.

    `options` are the task's own (`Task.options`, masks as bool arrays); `truth` is measured against and never fitted to. With
    `keep_on_interrupt` a KeyboardInterrupt ends the fit and delivers what there is; otherwise it propagates.
    Raises InputError for wrong options, DeviceError for a device that is not here, FitError for a fit beyond repair.
    """
    restoring = begin_restoration(image, task, options, settings, plan, truth=truth)
    return restoring.complete(progress, keep_on_interrupt=keep_on_interrupt)


def check_units(values: ValueMap, image: Image, truth: Image) -> None:
    """A picture in 0..1 and one in 0..255 would be compared in two units. Counts may be as small. Raises InputError."""
    names = image.dtype_name, truth.dtype_name
    if sum(name in ("uint8", "uint16") for name in names) != 1 or image.in_data_units or truth.in_data_units:
        return
    if names[0] in ("uint8", "uint16") and not values.is_whole(names[0]):
        return
    tops = [extremes(given.pixels if given.known is None else given.pixels[given.known])[1] for given in (image, truth)]
    integer, real = tops if names[0].startswith("uint") else tops[::-1]
    if real <= _UNIT_TOP and integer >= _INTEGER_TOP:
        raise InputError(
            f"The truth is {names[1]} with values up to {tops[1]:g} and the image {names[0]} with values up to {tops[0]:g}; "
            f"give both in one unit."
        )


def psnr_peak(values: ValueMap, settings: Settings, image: Image, truth: Image) -> float:
    """The range, in data units, that PSNR and SSIM are measured against: the one given; of 8 and 16 bits that are
    fitted so all that they hold; else the truth's own. That of the fit would not do: it follows the noise, and deblurring widens it.
    """
    if settings.value_range is not None or values.is_whole(image.dtype_name):
        return values.span
    pixels = truth.pixels if truth.known is None else truth.pixels[truth.known]
    lowest, highest = extremes(pixels)
    return highest - lowest or values.span


def _measure(pixels: np.ndarray, image: Image, truth: Image, peak: float) -> dict[str, float | None]:
    """PSNR and SSIM of what is delivered, after rounding to the input's dtype, as anybody would find them in the file."""
    same_size = tuple(image.pixels.shape) == tuple(truth.pixels.shape)
    return {
        "psnr_peak": peak,
        "psnr_input": metrics.psnr(image.pixels, truth.pixels, peak, truth.known) if same_size and image.known is None else None,
        "psnr": metrics.psnr(pixels, truth.pixels, peak, truth.known),
        "ssim": metrics.ssim(pixels, truth.pixels, peak, truth.known),
    }


def check_truth(image: Image, truth: Image, shape: tuple[int, int, int]) -> None:
    """Refuse what the restored image, of `shape`, cannot be compared with. Raises InputError."""
    if tuple(truth.pixels.shape) != shape:
        raise InputError(
            f"The truth is {_size(truth.pixels.shape)} and the restored image {_size(shape)}; "
            f"they must agree in size and channels."
        )
    # 8 and 16 bits stand for one range of light in two units: comparing them would measure nothing.
    kinds = {image.dtype_name, truth.dtype_name}
    if kinds == {"uint8", "uint16"} and not image.in_data_units:
        raise InputError(
            f"The truth is {truth.dtype_name} and the image {image.dtype_name}; convert one to the other's bit depth."
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} pixels with {shape[2]} channel(s)"


def _unit_alpha(image: Image) -> Any:
    """Transparency, float32 [H, W]: 0 clear, 1 opaque."""
    if image.alpha is None:
        return None
    return cast(image.alpha, namespace(image.alpha).float32) / float(opaque(image.alpha.dtype))


def _delivered_alpha(image: Image, problem: Problem) -> Any:
    """The input's transparency, enlarged with the image (by libvips, on the host); none where it told what to fill in."""
    if image.alpha is None or problem.fills_alpha:
        return None
    if problem.scale == 1:
        return image.alpha
    from dipengine.images.resizing import enlarge

    return beside(enlarge(on_host(image.alpha), problem.scale), image.alpha)
