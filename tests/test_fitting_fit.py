"""One fit, step by step: what z may be, what the window means, and agreement of both kernel backends."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import synthetic_picture
from dipengine.fitting.device import Placement
from dipengine.fitting.fit import Fit
from dipengine.generators.architecture import Hourglass
from dipengine.tasks.base import Problem, Recipe
from dipengine.tasks.downsampling import Downsampling

GENERATOR = Hourglass.regular(levels=2, channels_down=8, channels_up=8, channels_skip=4, upsample="nearest", input_depth=8)
RECIPE = Recipe(GENERATOR, iterations=10, average_decay=0.9)
TARGET = synthetic_picture(21, 30).astype(np.float32)


def fit(kernels="native", precision="fp32", problem=None, recipe=RECIPE) -> Fit:
    problem = problem or Problem("denoise", TARGET, TARGET.shape[:2], recipe)
    return Fit(problem, recipe, 0, Placement("cpu", precision, kernels, 1))


KNOWN = np.ones(TARGET.shape[:2], bool)
KNOWN[3:9, 5:20] = False
PROBLEMS = {
    "identity": Problem("denoise", TARGET, TARGET.shape[:2], RECIPE),
    "masked": Problem("inpaint", TARGET, TARGET.shape[:2], RECIPE, known=KNOWN),
    "downsampled": Problem("superres", TARGET, (42, 60), RECIPE, operator=Downsampling(2)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_one_step_is_the_same_with_native_and_torch_kernels(problem):
    native, plain = (fit(kernels, "fp32", PROBLEMS[problem]) for kernels in ("native", "torch"))
    assert native.step().loss == pytest.approx(plain.step().loss, rel=1e-5)
    np.testing.assert_allclose(native.average(), plain.average(), atol=1e-5)
    for (name, ours), (_, theirs) in zip(native.network.trainable(), plain.network.trainable()):
        scale = theirs.grad.abs().max()
        if scale > 1e-6:
            assert (ours.grad - theirs.grad).abs().max() / scale < 1e-3, name


@pytest.mark.parametrize("problem", PROBLEMS)
def test_one_step_in_bf16_is_as_near_to_fp32_as_that_of_plain_pytorch(problem):
    """RMS over seeds: of the loss's relative error, of the output, of all gradients relative to their norm."""
    errors = {kernels: np.zeros(3) for kernels in ("native", "torch")}
    for seed in range(12):
        exact, *others = (
            Fit(PROBLEMS[problem], RECIPE, seed, Placement("cpu", precision, kernels, 1))
            for precision, kernels in (("fp32", "torch"), ("bf16", "native"), ("bf16", "torch"))
        )
        loss = exact.step().loss
        for one, kernels in zip(others, errors):
            difference = one.step().loss / loss - 1
            pairs = [(a.grad, b.grad) for (_, a), (_, b) in zip(one.network.trainable(), exact.network.trainable())]
            squares = sum((a - b).square().sum().item() for a, b in pairs) / sum(b.square().sum().item() for _, b in pairs)
            errors[kernels] += difference**2, np.square(one.average() - exact.average()).mean(), squares
    assert (np.sqrt(errors["native"]) <= 2 * np.sqrt(errors["torch"]) + 1e-6).all(), errors


def test_the_window_alone_is_fitted_and_delivered():
    one = fit()
    assert one.canvas == (24, 32)
    one.step()
    assert one.average().shape == one.render().shape == TARGET.shape


def test_average_is_the_exponential_average_of_the_outputs():
    """Recomputed from the weights before each step, with z perturbed as the step did."""
    from dipengine.kernels import philox

    one = fit(recipe=replace(RECIPE, perturbation=0.0))
    expected = None
    for _ in range(4):
        output = one.render()
        expected = output if expected is None else 0.9 * expected + 0.1 * output
        one.step()
        np.testing.assert_allclose(one.average(), expected, atol=1e-6)
    assert philox.PERTURBATION != philox.CODE


@pytest.mark.parametrize("code, depth", [("noise", 8), ("meshgrid", 2), ("image", 3)])
def test_z_is_noise_a_meshgrid_or_an_image(code, depth):
    recipe = replace(RECIPE, code=code, generator=replace(GENERATOR, input_depth=depth), perturbation=0.0)
    problem = Problem("flash", TARGET, TARGET.shape[:2], recipe, guide=TARGET[::-1].copy() if code == "image" else None)
    one = fit(problem=problem, recipe=recipe)
    z = one.code.make(one.canvas)
    assert z.shape == (*one.canvas, depth)
    if code == "image":
        np.testing.assert_array_equal(z[:21, :30], TARGET[::-1])
    before = one.step().loss
    for _ in range(30):
        after = one.step().loss
    assert after < before


def test_snapshot_and_restore_give_the_same_continuation():
    one = fit()
    for _ in range(3):
        one.step()
    state, iteration = one.snapshot(), one.iteration
    first = [one.step().loss for _ in range(3)]
    one.restore(state)
    one.iteration = iteration
    assert [one.step().loss for _ in range(3)] == first


def test_dead_parameters_never_move():
    one = fit()
    before = one.weights()
    for _ in range(3):
        one.step()
    after = one.weights()
    dead = {spec.name for spec in one.recipe.generator.parameters() if spec.dead}
    for name, value in before.items():
        assert (value == after[name]).all() == (name in dead), name


def test_residual_is_over_known_pixels_only():
    known = np.zeros(TARGET.shape[:2], bool)
    known[:, :10] = True
    one = fit(problem=Problem("inpaint", TARGET, TARGET.shape[:2], RECIPE, known=known))
    one.step()
    expected = np.mean((one.average()[:, :10] - TARGET[:, :10]) ** 2)
    assert one.residual() == pytest.approx(expected, rel=1e-5)


def test_a_diverging_fit_is_rolled_back_and_goes_on():
    one = fit()
    for _ in range(4):
        one.step()
    with torch.no_grad():
        one.optimizer.parameters[:] = float("nan")
    assert one.step().rolled_back
    assert np.isfinite(one.average()).all()
    assert np.isfinite(one.step().loss)
    assert one.guard.count == 1
