"""One fit: theta* = argmin E(A(f_theta(z)); x0), one iteration at a time, on PyTorch autograd over the fused kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine.fitting.device import Placement
from dipengine.fitting.rollback import Rollback
from dipengine.fitting.stopping import es_alpha
from dipengine.generators.code import Code
from dipengine.generators.initial import initial_parameters
from dipengine.images.namespaces import any_true, from_tensor, to_tensor
from dipengine.kernels import philox
from dipengine.tasks.base import Problem, Recipe

if TYPE_CHECKING:
    from dipengine.fitting.warm_start import WarmStart


@dataclass(frozen=True)
class Step:
    """What one iteration yields."""

    loss: float  # data term at the weights before the update
    variance: float  # ES-EMV's V after this output
    rolled_back: bool  # the loss was bad: weights and averages are those of the last good snapshot, nothing was learnt


class Fit:
    """State of one fit: generator, z, Adam, the running output average and the stopping statistic.

    The canvas (design 3.9) is larger than the image where a side is not a multiple of 2^levels; the image lies in its
    upper left corner, the loss sees only that window.
    """

    def __init__(
        self, problem: Problem, recipe: Recipe, seed: int, placement: Placement, init: WarmStart | None = None,
        held: np.ndarray | None = None,
    ) -> None:
        """held: known pixels that are kept out of the fit, bool [h, w] (fitting.held_out)."""
        import torch

        from dipengine.generators.hourglass import HourglassNetwork
        from dipengine.kernels.adam import Adam
        from dipengine.kernels.masked_mse import OutputStatistics

        self.problem = problem
        self.placement = placement
        self.seed = seed
        channels = problem.channels
        self.code = _code(problem, recipe, seed)
        generator = replace(recipe.generator, input_depth=self.code.depth, output_channels=channels)
        self.recipe = recipe = replace(recipe, generator=generator)
        self.canvas = generator.canvas(*problem.output_shape)
        if init is not None:
            self.code = init.code_for(generator, self.code, self.canvas)
        self.iteration = 0

        device = torch.device(placement.device)
        self._torch = torch
        check = getattr(problem.operator, "check", None)
        if check is not None:
            height, width, measured = problem.target.shape
            check((1, channels, *problem.output_shape), (1, measured, height, width), device)
        self._z = _to_tensor(self.code.make(self.canvas), device)
        dtype = torch.bfloat16 if placement.precision == "bf16" else torch.float32
        self._input = torch.empty_like(self._z, dtype=dtype)
        self.network = HourglassNetwork(recipe.generator, kernels=placement.kernels).to(device)
        self.network.load_numpy(initial_parameters(recipe.generator, seed) if init is None else init.parameters)
        self.optimizer = Adam(
            self.network.trainable(), learning_rate=recipe.learning_rate, kernels=placement.kernels,
            weight_order="hwio" if self.network.fused else "oihw",
        )
        self._target = _to_tensor(problem.target, device)
        self._mask = self._held = None
        if problem.known is not None and any_true(~problem.known):
            self._mask = _to_tensor(problem.known[:, :, None], device)
        if held is not None:
            self._held = _to_tensor(held[:, :, None], device)
            self._mask = self._hidden = (1 if self._mask is None else self._mask) - self._held
        decay = recipe.average_decay if recipe.average_decay is not None else 0.0
        self.guard = Rollback(self, recipe.rollback_db)
        self.statistics = OutputStatistics(
            channels, *problem.output_shape, device=device, average_decay=decay, warm_up=recipe.average_warm_up,
            es_alpha=es_alpha(recipe.average_decay),
        )

    def step(self) -> Step:
        """One iteration: perturb z, forward, data term, statistics, backward, Adam."""
        from dipengine.kernels.masked_mse import masked_mse, track

        kernels = self.placement.kernels
        window = self.problem.output_shape
        philox.perturb(
            self._z, self.recipe.perturbation, self.seed, self.iteration, out=self._input, kernels=kernels
        )
        raw = self._forward(self._input)
        if self.problem.operator is None and self.problem.data_term is None:
            loss = masked_mse(
                raw, self._target, self._mask, window=window, statistics=self.statistics, kernels=kernels
            )
        else:
            track(raw.detach(), window=window, statistics=self.statistics, kernels=kernels)
            data = self._measured(self._torch.sigmoid(raw[:, :, : window[0], : window[1]]))
            if self.problem.data_term is None:
                loss = masked_mse(data, self._target, self._mask, activation="none", kernels=kernels)
            else:
                loss = self.problem.data_term.loss(data, self._target, self._mask, kernels)
        self.iteration += 1
        value = loss.item()
        # Judged before the update: a snapshot then holds weights whose own loss was seen to be good.
        if self.guard.check(self.iteration, value):
            return Step(value, self.statistics.es_variance, True)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Step(value, self.statistics.es_variance, False)

    def snapshot(self) -> tuple:
        """Weights, Adam's state and the running averages, copied."""
        return self.optimizer.snapshot(), self.statistics.snapshot()

    def restore(self, state: tuple) -> None:
        """Return to a snapshot. The perturbation of z goes on counting, so the next attempt sees other noise."""
        self.optimizer.restore(state[0])
        self.statistics.restore(state[1])

    @property
    def es_alpha(self) -> float:
        """ES-EMV's weight of a new output."""
        return self.statistics.es_alpha

    @property
    def torch_is_idle(self) -> bool:
        """True where the native ops do all of an iteration that is worth more than one thread."""
        operator = self.problem.operator
        return self.network.fused and (operator is None or getattr(operator, "light", False))

    def average(self) -> Any:
        """The exponential average of the outputs, float32 [H, W, C] in [0, 1] (the last output where decay is 0); an array like the
        problem's target, copied."""
        return self._to_array(self.statistics.average)

    @property
    def held_out(self) -> int:
        """Known pixels that are kept out of the fit until it has been nearest to them."""
        return 0 if self._held is None else int(self._held.sum().item())

    def show_held_out(self, shown: bool = True) -> None:
        """From the next iteration on the fit sees the pixels that were held out, or does not."""
        if self._held is not None:
            self._mask = self._hidden + self._held if shown else self._hidden

    def set_average(self, image: Any) -> None:
        """Go on from an average [H, W, C] that `average` gave."""
        self.statistics.average.copy_(_to_tensor(image, self.statistics.average.device))

    def residual(self) -> float:
        """Mean squared difference between A(output average) and x0 over the known pixels, or over those held out."""
        with self._torch.no_grad():
            squares = (self._measured(self.statistics.average) - self._target).square()
        mask = self._mask if self._held is None else self._held
        if mask is None:
            return squares.mean().item()
        return ((squares * mask).sum() / (mask.sum() * squares.shape[1])).item()

    def discrepancy(self) -> float | None:
        """Mean squared residual of the output average in standard deviations of the noise, where the problem knows it (by its
        data term's own measure, where it has one); else None.
        """
        problem = self.problem
        if problem.data_term is not None:
            with self._torch.no_grad():
                data = self._measured(self.statistics.average)
                return problem.data_term.discrepancy(data, self._target, self._mask, self.placement.kernels)
        return self.residual() / problem.sigma**2 if problem.knows_noise else None

    def render(self) -> Any:
        """f_theta(z) at the unperturbed z, float32 [H, W, C] in [0, 1]; an array like the problem's target."""
        height, width = self.problem.output_shape
        with self._torch.no_grad():
            raw = self._forward(self._z.to(self._input.dtype))
            return self._to_array(self._torch.sigmoid(raw[:, :, :height, :width].float()))

    def weights(self) -> dict[str, np.ndarray]:
        """All parameters by name, float32, copied."""
        return self.network.numpy_parameters()

    def _to_array(self, tensor) -> Any:
        """[1, C, H, W] -> [H, W, C], float32, copied, in the library and on the device of the problem's target."""
        return from_tensor(tensor[0].permute(1, 2, 0).clone(memory_format=self._torch.contiguous_format), self.problem.target)

    def _measured(self, image):
        """A of an image [1, C, H, W] in [0, 1]."""
        operator = self.problem.operator
        if operator is None:
            return image
        return operator.apply(image, self.placement.kernels) if getattr(operator, "has_kernels", False) else operator.apply(image)

    def _forward(self, z):
        bf16 = self.placement.precision == "bf16"
        device = self.placement.device.partition(":")[0]
        with self._torch.autocast(device, dtype=self._torch.bfloat16, enabled=bf16):
            return self.network(z)


def _code(problem: Problem, recipe: Recipe, seed: int) -> Code:
    """z as the recipe says; a guide image sets its depth."""
    if recipe.code == "image":
        return Code.of_image(problem.guide)
    return Code(kind=recipe.code, depth=recipe.generator.input_depth, seed=seed)


def _to_tensor(array: Any, device):
    """[H, W, C] of any library -> float32 [1, C, H, W] on the device, in channels_last memory of PyTorch's own.

    A copy: the bits of PyTorch's ops hang on how memory is aligned, on CPUs without AVX-512, and NumPy's is so by chance.
    """
    import torch

    tensor = to_tensor(array).permute(2, 0, 1)[None]
    return tensor.to(device, torch.float32, copy=True, memory_format=torch.channels_last)
