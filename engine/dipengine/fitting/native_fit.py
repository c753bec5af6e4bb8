"""One fit as the core's native plan: whole iterations without Python or PyTorch (csrc/include/dipengine/fit.h)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine import environment
from dipengine.errors import FitError, OutOfMemory
from dipengine.fitting import held_out
from dipengine.fitting.device import Placement
from dipengine.fitting.stopping import StopRule, es_alpha
from dipengine.generators.architecture import Hourglass
from dipengine.generators.code import Code
from dipengine.images.namespaces import beside, cast, choose, dense, device_of, dtype_in, empty_beside, namespace, on_host
from dipengine.kernels import backend, pool
from dipengine.kernels.backend import native
from dipengine.noise.likelihood import SensorLikelihood
from dipengine.tasks.base import Problem, Recipe
from dipengine.tasks.blur import Blur
from dipengine.tasks.downsampling import Downsampling

if TYPE_CHECKING:
    from dipengine.fitting.warm_start import WarmStart

_DTYPES = {"fp32": 0, "bf16": 1}
_DEVICES = {"cpu": 0, "cuda": 1}
_CODES = {"noise": 0, "meshgrid": 1, "image": 2}
_UPSAMPLE = {"nearest": 1, "bilinear": 2}


def supports(problem: Problem, recipe: Recipe, placement: Placement) -> bool:
    """True where the native plan can run the fit: built-in operators and data terms, up kernels of 3."""
    generator = recipe.generator
    widest = max(generator.kernel_down) + (1 if generator.downsample == "average" else 0)
    return (
        placement.kernels == "native"
        and backend.native is not None
        and all(kernel == 3 for kernel in generator.kernel_up)
        and widest <= 7
        and isinstance(problem.operator, (type(None), Downsampling, Blur))
        and isinstance(problem.data_term, (type(None), SensorLikelihood))
    )


def planned_bytes(problem: Problem, recipe: Recipe, placement: Placement, stop: str) -> tuple[int, int]:
    """Bytes of the arena that a NativeFit of these would take, and of its state within, before anything is taken."""
    code, recipe = _resolved(problem, recipe, seed=0)
    settings, generator = _settings(problem, recipe, code, placement, stop), _generator(recipe.generator)
    one, two = (native.fit_memory(generator, settings | {"slots": slots}, pool.get()) for slots in (1, 2))
    return one, two - one


def _resolved(problem: Problem, recipe: Recipe, seed: int) -> tuple[Code, Recipe]:
    """z, and the recipe with the network's ends as the problem has them."""
    if recipe.code == "image":
        code = Code.of_image(problem.guide)
    else:
        code = Code(kind=recipe.code, depth=recipe.generator.input_depth, seed=seed)
    generator = replace(recipe.generator, input_depth=code.depth, output_channels=problem.channels)
    return code, replace(recipe, generator=generator)


class NativeFit:
    """State of one fit in the core; `fitting.fit.Fit` is its twin on autograd.

    Weights, Adam, averages, stopping, best state and roll-back all live in one arena of `arena_bytes` bytes.
    """

    whole = True  # an interrupted run leaves no iteration half done
    _slot, _slots = 0, 1  # of the plan: where this fit is, and how many there are

    def __init__(
        self, problem: Problem, recipe: Recipe, seed: int, placement: Placement, stop: str, init: WarmStart | None = None
    ) -> None:
        self._describe(problem, recipe, seed, placement, init)
        generator = self.recipe.generator
        pool.set_threads(placement.threads)
        self._settings = _settings(problem, self.recipe, self.code, placement, stop)
        if placement.device == "cpu":
            _check_memory(native.fit_memory(_generator(generator), self._settings, pool.get()))
        self._native = native.Fit(pool.get(), _generator(generator), self._settings)
        self.arena_bytes: int = self._native.bytes
        self._start(init)

    def _describe(self, problem: Problem, recipe: Recipe, seed: int, placement: Placement, init: WarmStart | None) -> None:
        self.problem = problem
        self.placement = placement
        self.seed = seed
        self.code, self.recipe = _resolved(problem, recipe, seed)
        self.canvas = self.recipe.generator.canvas(*problem.output_shape)
        if init is not None:
            self.code = init.code_for(self.recipe.generator, self.code, self.canvas)
        self.es_alpha = es_alpha(self.recipe.average_decay)
        self.losses: list[float] = []  # of each iteration, at the weights before its update
        self.variances: list[float] = []  # ES-EMV's V after each

    def _start(self, init: WarmStart | None) -> None:
        problem = self.problem
        target, mask = self._data()
        guide = np.ascontiguousarray(problem.guide, np.float32) if self.recipe.code == "image" else None
        self._native.start(
            self._slot, seed=self.seed, target=target, mask=mask, code=guide, image=problem.output_shape, data=tuple(target.shape[:2])
        )
        if problem.sigma is not None and problem.data_term is None:
            self._native.set_sigma(self._slot, problem.sigma)  # the plan may be that of another image
        if init is not None:
            self.load_weights(init.parameters)
            self._native.set_patience(self._slot, StopRule.for_recipe(self.recipe, warm_start=True).patience)
            if self.code.kind == "noise":
                self._native.set_code_seed(self._slot, self.code.seed)

    def _stays(self) -> bool:
        """Whether the problem's arrays are on the fit's own device, where the core takes them from and gives its images."""
        return self.placement.device != "cpu" and device_of(self.problem.target) == self.placement.device

    def _data(self) -> tuple[Any, Any]:
        """Target and mask as the core takes them, float32 in C order: on the fit's device where they are there, else NumPy's."""
        target, known = self.problem.target, self.problem.known
        if not self._stays():
            target, known = on_host(target), None if known is None else on_host(known)
        xp = namespace(target)
        target = dense(target, "float32")
        if known is None or bool(xp.all(known)):
            return target, None
        return dense(choose(known[:, :, None], target, xp.zeros_like(target))), dense(cast(known, xp.float32))

    def run(
        self,
        iterations: int,
        report: Callable[[dict[str, Any]], bool] | None = None,
        step_seconds: np.ndarray | None = None,
    ) -> None:
        """Up to `iterations` more, fewer where the fit stops by itself; `losses` and `variances` grow by those run.

        report: called after each with the progress; True ends the run. step_seconds: float64 [len(steps())], the time of each
        step is added. KeyboardInterrupt leaves a whole number of iterations done. Raises FitError when the fit diverges beyond
        repair.
        """
        before = self.iteration
        losses, variances = np.empty((2, self._slots, iterations))
        try:
            self._native.run(
                iterations, slots=[self._slot], losses=losses, variances=variances, report=report, step_seconds=step_seconds
            )
        finally:
            self._take(losses, variances, before)
        if (failure := self.failure) is not None:
            raise failure

    def _take(self, losses: np.ndarray, variances: np.ndarray, before: int) -> None:
        """The part of this fit, which was at iteration `before`, in what a run left: [slots, iterations]."""
        done = self.iteration - before
        self.losses += losses[self._slot, :done].tolist()
        self.variances += variances[self._slot, :done].tolist()

    @property
    def failure(self) -> FitError | None:
        """What the fit is beyond repair for; None while it is not."""
        progress = self.progress()
        if progress["state"] != "failed":
            return None
        loss = progress["loss"]
        if progress["reason"] == "first loss":
            return FitError(f"The first loss of the fit is {loss:g}; check the input's values.")
        return FitError(
            f"The fit diverges (loss {loss:g}) and 20 roll-backs did not help; check the input's values, or try --precision fp32."
        )

    def set_threads(self, count: int) -> None:
        """CPU threads from the next run on; the bits stay the same. An arena has room for one number of threads: it is made anew."""
        if count == self.placement.threads:
            return
        if self.placement.device != "cpu":
            self.placement = replace(self.placement, threads=count)
            return
        state = self.save_state()
        self._native = None  # its memory is needed for the next
        self.placement = replace(self.placement, threads=count)
        pool.set_threads(count)
        self._native = native.Fit(pool.get(), _generator(self.recipe.generator), self._settings)
        self.arena_bytes = self._native.bytes
        self.load_state(state)

    def progress(self) -> dict[str, Any]:
        """state ("running", "done", ...), reason, iteration, delivered_iteration, rollbacks, loss, variance, ..."""
        return self._native.progress(self._slot)

    @property
    def iteration(self) -> int:
        """Iterations run."""
        return self._native.progress(self._slot)["iteration"]

    @property
    def reason(self) -> str:
        """Why the fit stopped by itself: "iterations", "variance", "discrepancy", "held-out"; empty while it has not."""
        return self._native.progress(self._slot)["reason"]

    @property
    def held_out(self) -> int:
        """Known pixels that are kept out of the fit until it has been nearest to them."""
        return self.progress()["held_out"]

    @property
    def rollbacks(self) -> int:
        return self._native.progress(self._slot)["rollbacks"]

    def steps(self) -> list[str]:
        """The names of an iteration's steps, in their order."""
        return self._native.steps()

    def average(self) -> Any:
        """The exponential average of the outputs, float32 [H, W, C] in [0, 1]; an array like the problem's target, as all images
        that the fit gives."""
        out = self._image()
        self._native.average(self._slot, out)
        return self._given(out)

    def render(self) -> Any:
        """f_theta(z) at the unperturbed z, float32 [H, W, C] in [0, 1]."""
        out = self._image()
        self._native.render(self._slot, out)
        return self._given(out)

    def deliver(self) -> tuple[Any, dict[str, np.ndarray], int]:
        """The image that the fit delivers, the weights it stems from, and its iteration."""
        image, flat = self._image(), self._flat()
        iteration = self._native.deliver(self._slot, image, flat)
        return self._given(image), self._named(flat), iteration

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters by name, float32, copied."""
        flat = self._flat()
        self._native.get_parameters(self._slot, flat)
        return self._named(flat)

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the last iteration by parameter name, float32; those of dead parameters are 0."""
        flat = self._flat()
        self._native.get_gradients(flat)
        return self._named(flat)

    def statistics(self) -> dict[str, np.ndarray]:
        """Per-channel mean, by the name of its gamma, and biased variance, by that of its beta, of what each norm is given
        at the unperturbed z."""
        flat = self._flat()
        self._native.statistics(self._slot, flat)
        return {name: values for name, values in self._named(flat).items() if ".norm." in name}

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Set all parameters; Adam's state stays."""
        order = (weights[spec.name] for spec in self.recipe.generator.parameters())
        self._native.set_parameters(self._slot, np.concatenate([np.ravel(array).astype(np.float32) for array in order]))

    def save_state(self) -> bytes:
        """All of the fit, so that one of the same settings goes on from there with the same bits."""
        return self._native.save_state(self._slot)

    def load_state(self, state: bytes | np.ndarray) -> None:
        """Go on from a saved state. Raises InputError for bytes that are no whole state of a fit of the same settings."""
        self._native.load_state(self._slot, state, image=self.problem.output_shape)

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All of the fit as an array of bytes, `state`; see `AutogradLoop.pack`."""
        return {"state": np.frombuffer(self.save_state(), np.uint8)}, {}

    def unpack(
        self, weights: dict[str, np.ndarray], tensors: Mapping[str, np.ndarray], numbers: Mapping[str, Any], iteration: int
    ) -> None:
        """Go on from a packed state; see `AutogradLoop.unpack`. The weights are in the state."""
        before = self.save_state()
        self.load_state(np.ascontiguousarray(tensors["state"], np.uint8))
        if (found := self.iteration) != iteration:
            self.load_state(before)
            raise ValueError(f"it is of iteration {found}, not {iteration}")

    def _image(self) -> Any:
        shape = (*self.problem.output_shape, self.problem.channels)
        target = self.problem.target
        return empty_beside(target, shape, dtype_in(namespace(target), "float32")) if self._stays() else np.empty(shape, np.float32)

    def _given(self, image: Any) -> Any:
        return beside(image, self.problem.target) if isinstance(image, np.ndarray) else image

    def _flat(self) -> np.ndarray:
        return np.empty(self.recipe.generator.parameter_count, np.float32)

    def _named(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        named, first = {}, 0
        for spec in self.recipe.generator.parameters():
            named[spec.name] = flat[first : first + spec.size].reshape(spec.shape)
            first += spec.size
        return named


def _check_memory(needed: int) -> None:
    """Refused before it is taken: an operating system that promises more than it has would end the process instead."""
    there = environment.memory()
    if there is not None and needed > there:
        raise OutOfMemory(
            f"The fit needs {needed / 2**30:.1f} GiB of memory and this machine gives {there / 2**30:.1f}; use a smaller image, "
            f"fewer channels or the preset fast."
        )


def _generator(generator: Hourglass) -> dict[str, Any]:
    return {
        "levels": generator.levels,
        "input_depth": generator.input_depth,
        "output_channels": generator.output_channels,
        "channels_down": list(generator.channels_down),
        "channels_up": list(generator.channels_up),
        "channels_skip": list(generator.channels_skip),
        "kernel_down": list(generator.kernel_down),
        "upsample": [_UPSAMPLE[mode] for mode in generator.upsample],
        "downsample": int(generator.downsample == "average"),
        "one_by_one_up": int(generator.one_by_one_up),
        "padding": int(generator.padding == "zero"),
        "negative_slope": generator.negative_slope,
    }


def _settings(problem: Problem, recipe: Recipe, code: Code, placement: Placement, stop: str) -> dict[str, Any]:
    operator, term = problem.operator, problem.data_term
    down = operator if isinstance(operator, Downsampling) else None
    blur = operator if isinstance(operator, Blur) else None
    scale, shift, read = term.electrons() if isinstance(term, SensorLikelihood) else (0.0, 0.0, 0.0)
    kind, _, index = placement.device.partition(":")
    return {
        "device": _DEVICES[kind],
        "device_index": int(index or 0),
        "dtype": _DTYPES[placement.precision],
        "slots": 1,
        "height": problem.output_shape[0],
        "width": problem.output_shape[1],
        "operator_kind": 1 if down else 2 if blur else 0,
        "data_height": problem.target.shape[0],
        "data_width": problem.target.shape[1],
        "factor": down.factor if down else 0,
        "before": down.before if down else 0,
        "taps": down.taps.tolist() if down else [],
        "kernel_height": blur.kernel.shape[0] if blur else 0,
        "kernel_width": blur.kernel.shape[1] if blur else 0,
        "kernel": blur.kernel.ravel().tolist() if blur else [],
        "data_term": int(term is not None),
        "electrons_scale": scale,
        "electrons_shift": shift,
        "read_variance": read,
        "sigma": problem.sigma or 0.0,
        "code": _CODES[recipe.code],
        "code_scale": code.scale,
        "perturbation": recipe.perturbation,
        "learning_rate": recipe.learning_rate,
        "average_decay": recipe.average_decay or 0.0,
        "average_warm_up": int(recipe.average_warm_up),
        "deliver_average": int(recipe.average_decay is not None),
        "es_alpha": es_alpha(recipe.average_decay),
        "rollback_db": recipe.rollback_db,
        "stop": int(stop == "auto"),
        "iterations": recipe.iterations,
        "hold_out": held_out.share(problem, recipe, stop),
    }
