"""The native plan of a fit against the autograd path, plain PyTorch in float64, and itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import synthetic_picture
from dipengine import environment
from dipengine.errors import FitError, InputError
from dipengine.fitting import native_fit
from dipengine.fitting.device import Placement
from dipengine.fitting.fit import Fit
from dipengine.fitting.native_fit import NativeFit
from dipengine.fitting.run import run
from dipengine.fitting.stopping import StopRule
from dipengine.generators.architecture import Hourglass
from dipengine.generators.hourglass import HourglassNetwork
from dipengine.images import ValueMap
from dipengine.kernels import backend, philox
from dipengine.noise.likelihood import FLOOR, SensorLikelihood
from dipengine.noise.sensor import Sensor
from dipengine.tasks.base import Problem, Recipe
from dipengine.tasks.blur import Blur
from dipengine.tasks.downsampling import Downsampling
from dipengine.tasks.inpaint import RECIPES

pytestmark = [
    pytest.mark.skipif(not backend.native_available(), reason="needs the native core"),
    pytest.mark.usefixtures("one_torch_thread"),
]

SMALL = Hourglass.regular(levels=2, channels_down=8, channels_up=8, channels_skip=4, upsample="nearest", input_depth=8)
RECIPE = Recipe(SMALL, iterations=40, average_decay=0.9, average_warm_up=True)
TARGET = synthetic_picture(21, 30).astype(np.float32)
KNOWN = np.ones(TARGET.shape[:2], bool)
KNOWN[3:9, 5:20] = False
KERNEL = np.random.default_rng(3).random((3, 4))
KERNEL /= KERNEL.sum()
SENSOR = SensorLikelihood(Sensor(gain=40.0, offset=0.02, read_noise=0.05), ValueMap(0.0, 1.0))
PROBLEMS = {
    "identity": Problem("denoise", TARGET, TARGET.shape[:2], RECIPE),
    "grey": Problem("denoise", TARGET[:, :, :1].copy(), TARGET.shape[:2], RECIPE),
    "masked": Problem("inpaint", TARGET, TARGET.shape[:2], RECIPE, known=KNOWN),
    "downsampled": Problem("superres", TARGET, (63, 90), RECIPE, operator=Downsampling(3), known=KNOWN),
    "blurred": Problem("deblur", TARGET, (23, 33), RECIPE, operator=Blur(KERNEL)),
    "sensor": Problem("denoise", TARGET, TARGET.shape[:2], RECIPE, data_term=SENSOR, known=KNOWN),
    "blurred sensor": Problem("deblur", TARGET, (23, 33), RECIPE, operator=Blur(KERNEL), data_term=SENSOR),
}
SAME_BITS = ("identity", "grey", "masked")  # the others' operators are PyTorch's own on the autograd path
GENERATORS = {
    "bilinear": replace(SMALL, upsample=("bilinear",) * 2),
    "average": replace(SMALL, downsample="average"),
    "zero padding": replace(SMALL, padding="zero", channels_skip=(0, 5)),
    "no points": replace(SMALL, one_by_one_up=False, kernel_down=(5, 3)),
    "wide": Hourglass.regular(levels=3, channels_down=(8, 20, 33), channels_up=(40, 9, 16), channels_skip=(3, 0, 17)),
}


def placement(precision="fp32", threads=1) -> Placement:
    return Placement("cpu", precision, "native", threads)


def native(problem, recipe=None, precision="fp32", seed=5, stop="fixed", threads=1) -> NativeFit:
    return NativeFit(problem, recipe or problem.recipe, seed, placement(precision, threads), stop)


def autograd(problem, recipe=None, precision="fp32", seed=5, kernels="native") -> Fit:
    return Fit(problem, recipe or problem.recipe, seed, Placement("cpu", precision, kernels, 1))


def same_gradients(plan: NativeFit, fit: Fit) -> list[str]:
    ours, theirs = plan.gradients(), {name: p.grad for name, p in fit.network.named_parameters()}
    return [name for name in ours if theirs[name] is not None and not np.array_equal(ours[name], theirs[name].numpy())]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SAME_BITS)
def test_plan_and_autograd_give_the_same_bits(name, precision):
    plan, fit = native(PROBLEMS[name], precision=precision), autograd(PROBLEMS[name], precision=precision)
    for _ in range(25):  # a snapshot for roll-back falls within
        plan.run(1)
        step = fit.step()
        assert plan.losses[-1] == pytest.approx(step.loss, rel=1e-6)
        assert plan.variances[-1] == step.variance
        assert not same_gradients(plan, fit)
    assert all(np.array_equal(a, b) for a, b in zip(plan.weights().values(), fit.weights().values()))
    assert np.array_equal(plan.average(), fit.average())


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_gives_the_bits_of_autograd(name):
    recipe = replace(RECIPE, generator=GENERATORS[name])
    plan, fit = native(PROBLEMS["masked"], recipe), autograd(PROBLEMS["masked"], recipe)
    for _ in range(3):
        plan.run(1)
        fit.step()
        assert not same_gradients(plan, fit)
    np.testing.assert_allclose(plan.render(), fit.render(), atol=1e-6)  # the sigmoid is another implementation


@pytest.mark.parametrize("code", ["meshgrid", "image"])
def test_every_code_gives_the_bits_of_autograd(code):
    depth = 2 if code == "meshgrid" else 3
    recipe = replace(RECIPE, code=code, generator=replace(SMALL, input_depth=depth))
    guide = synthetic_picture(21, 30).astype(np.float32) if code == "image" else None
    problem = replace(PROBLEMS["identity"], recipe=recipe, guide=guide)
    plan, fit = native(problem), autograd(problem)
    for _ in range(3):
        plan.run(1)
        fit.step()
        assert not same_gradients(plan, fit)


def test_the_large_hole_recipe_runs_as_a_plan():
    problem = replace(PROBLEMS["masked"], recipe=RECIPES["large-hole"])
    plan, fit = native(problem), autograd(problem)
    plan.run(2)
    fit.step(), fit.step()
    assert not same_gradients(plan, fit)


def float64_step(problem: Problem, recipe: Recipe, plan_weights, seed: int, step: int):
    """Loss and gradients in float64 by plain PyTorch, from given weights, at the z of iteration `step`."""
    fit = Fit(problem, recipe, seed, Placement("cpu", "fp32", "torch", 1))
    network = HourglassNetwork(fit.recipe.generator, kernels="torch")
    network.load_numpy(plan_weights)
    network.double()
    z = torch.empty_like(fit._z)
    philox.perturb(fit._z, recipe.perturbation, seed, step, out=z, kernels="native")
    height, width = problem.output_shape
    image = torch.sigmoid(network(z.double())[:, :, :height, :width])
    data = image if problem.operator is None else problem.operator.apply(image)
    target = fit._target.double()
    mask = None if fit._mask is None else fit._mask.double()
    if problem.data_term is not None:
        loss = problem.data_term.loss(data, target, mask)
    else:
        squares = (data - target).square()
        loss = (squares if mask is None else squares * mask).sum() / squares.numel()
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_from_recorded_states_are_as_near_to_float64_as_plain_pytorchs(name):
    """From each of 20 states of one run: one step's loss to 1e-5, and the pooled RMS error of all gradients (relative to each
    tensor's norm) at most twice that of plain PyTorch in float32."""
    problem, seed = PROBLEMS[name], 7  # of which no state has a value that float32 and float64 see on two sides of the slope's kink
    plan = native(problem, seed=seed)
    errors = {"plan": [], "torch": []}
    for step in range(20):
        weights = plan.weights()
        plan.run(1)
        loss, exact = float64_step(problem, problem.recipe, weights, seed, step)
        fit = autograd(problem, seed=seed, kernels="torch")
        fit.network.load_numpy(weights)
        fit.iteration = step
        assert fit.step().loss == pytest.approx(loss, rel=1e-5)
        assert plan.losses[-1] == pytest.approx(loss, rel=1e-5)
        theirs = {name: p.grad.numpy() for name, p in fit.network.named_parameters() if p.grad is not None}
        for kind, gradients in (("plan", plan.gradients()), ("torch", theirs)):
            for parameter, truth in exact.items():
                scale = np.sqrt(np.square(truth).mean())
                if scale > 1e-7:  # gammas in front of another norm have none to speak of
                    errors[kind].append(np.square((gradients[parameter] - truth) / scale).ravel())
    rms = {kind: np.sqrt(np.concatenate(values).mean()) for kind, values in errors.items()}
    assert rms["plan"] <= 2 * rms["torch"] + 1e-6, rms


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_delivered_image_is_that_of_the_autograd_path(name, monkeypatch):
    problem = PROBLEMS[name]
    recipe = replace(RECIPE, iterations=60)
    fit, outcome = run(problem, recipe, stop="auto", seed=1, placement=placement("fp32"))
    assert isinstance(fit, NativeFit)
    monkeypatch.setattr(native_fit, "supports", lambda *_: False)
    twin, expected = run(problem, recipe, stop="auto", seed=1, placement=placement("fp32"))
    assert isinstance(twin, Fit)
    if name in SAME_BITS:
        assert np.array_equal(outcome.image, expected.image)
        assert (outcome.iterations, outcome.best_iteration, outcome.stop_reason) == (
            expected.iterations, expected.best_iteration, expected.stop_reason
        )
        assert all(np.array_equal(outcome.weights[name], expected.weights[name]) for name in expected.weights)
    else:
        # Two correct paths part by rounding; both come to the same picture.
        assert np.sqrt(np.square(outcome.image - expected.image).mean()) < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["identity", "masked", "grey", "of real length", "by its ceiling", "too few pixels"])
def test_pixels_held_out_stop_a_plan_where_they_stop_autograd(name, precision, monkeypatch):
    """The same pixels, the same return to the best state, the same iterations with all of them behind it."""
    share = 0.05 if name == "too few pixels" else 0.3
    # Of 3000 iterations patience and the time with all pixels are at their most.
    ceiling = {"by its ceiling": 100, "of real length": 3000}.get(name, 400)
    recipe = replace(RECIPE, iterations=ceiling, average_decay=0.8, hold_out=share)
    problem = PROBLEMS.get(name, PROBLEMS["masked"])
    noise = np.random.default_rng(0).normal(0, 0.25, problem.target.shape)  # which no fit finds where it is not shown
    problem = replace(problem, target=np.clip(problem.target + noise, 0, 1).astype(np.float32))
    fit, outcome = run(problem, recipe, stop="auto", seed=1, placement=placement(precision))
    assert isinstance(fit, NativeFit)
    monkeypatch.setattr(native_fit, "supports", lambda *_: False)
    twin, expected = run(problem, recipe, stop="auto", seed=1, placement=placement(precision))
    assert fit.held_out == twin.held_out and (fit.held_out >= 64) == (name != "too few pixels")
    assert (outcome.stop_reason, outcome.iterations) == (expected.stop_reason, expected.iterations)
    reason = {"by its ceiling": "iterations", "too few pixels": "variance"}.get(name, "held-out")
    assert outcome.stop_reason == reason and (name != "of real length" or 350 < outcome.iterations < 1000)
    assert np.allclose(outcome.history.loss, expected.history.loss, rtol=1e-6)  # the sum's order is each path's own
    assert outcome.history.variance == expected.history.variance and np.array_equal(outcome.image, expected.image)
    assert all(np.array_equal(outcome.weights[name], expected.weights[name]) for name in expected.weights)


def test_with_pixels_held_out_a_fit_waits_for_200_iterations_and_goes_on_for_150():
    for ceiling, patience, shown in ((1, 40, 1), (400, 40, 40), (1500, 150, 150), (2000, 200, 150), (6000, 200, 150)):
        rule = StopRule.for_run(ceiling, 0.99).with_pixels_held_out()
        assert (rule.patience, rule.shown_for) == (patience, shown)


@pytest.mark.parametrize("change", [{"average_decay": None}, {"average_decay": 0.0}, {"learning_rate": 0.2}], ids=str)
def test_unusual_fits_with_pixels_held_out_are_those_of_autograd(change, monkeypatch):
    """Without an average, with one of the last output alone, and with a step size that has losses jump."""
    recipe = replace(RECIPE, iterations=200, hold_out=0.3, rollback_db=0.5, **change)
    ours = run(PROBLEMS["masked"], recipe, stop="auto", seed=1, placement=placement())[1]
    monkeypatch.setattr(native_fit, "supports", lambda *_: False)
    theirs = run(PROBLEMS["masked"], recipe, stop="auto", seed=1, placement=placement())[1]
    assert (ours.stop_reason, ours.iterations, ours.rollbacks) == (theirs.stop_reason, theirs.iterations, theirs.rollbacks)
    assert ours.rollbacks > 0
    assert ours.history.variance == theirs.history.variance
    assert np.allclose(ours.image, theirs.image, rtol=0, atol=1e-6)  # f(z) itself is painted by another sigmoid there


def test_a_fit_of_fixed_length_and_one_that_knows_its_noise_hold_nothing_out():
    recipe = replace(RECIPE, hold_out=0.3)
    assert native(PROBLEMS["masked"], recipe, stop="fixed").held_out == 0
    assert native(replace(PROBLEMS["masked"], sigma=0.1), recipe, stop="auto").held_out == 0
    assert native(PROBLEMS["sensor"], recipe, stop="auto").held_out == 0
    with pytest.raises(InputError, match="a share of 0 to 0.5"):
        replace(RECIPE, hold_out=0.51)


@pytest.mark.parametrize("noisy", [0.03, 0.2])
def test_known_noise_stops_a_plan_where_it_stops_autograd(noisy, monkeypatch):
    target = np.clip(TARGET + np.random.default_rng(0).normal(0, noisy, TARGET.shape), 0, 1).astype(np.float32)
    problem = replace(PROBLEMS["identity"], target=target, sigma=noisy)
    recipe = replace(RECIPE, iterations=200, average_decay=0.8)
    _, outcome = run(problem, recipe, stop="auto", seed=1, placement=placement())
    monkeypatch.setattr(native_fit, "supports", lambda *_: False)
    _, expected = run(problem, recipe, stop="auto", seed=1, placement=placement())
    assert (outcome.stop_reason, outcome.iterations) == (expected.stop_reason, expected.iterations)
    assert np.array_equal(outcome.image, expected.image)


def test_a_known_sensor_stops_a_plan():
    rng = np.random.default_rng(0)
    sensor = Sensor(gain=50.0, offset=0.0, read_noise=0.0)
    target = (rng.poisson(TARGET * 50) / 50).astype(np.float32)
    problem = replace(PROBLEMS["identity"], target=target, data_term=SensorLikelihood(sensor, ValueMap(0.0, 1.0)))
    recipe = replace(RECIPE, iterations=400, average_decay=0.8)
    fit, outcome = run(problem, recipe, stop="auto", seed=1, placement=placement())
    assert isinstance(fit, NativeFit) and outcome.stop_reason == "discrepancy"


def test_a_dark_frame_waits_for_its_bright_pixels():
    """The plan stops by the very discrepancy that Python computes, which the bright pixels keep above 1 for longer."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    light = 3 + 400 * sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 8) for a, b in ((9, 12), (28, 30), (31, 8)))
    values = ValueMap(0.0, 500.0)
    target = (rng.poisson(light) / values.span).astype(np.float32)[:, :, None]
    term = SensorLikelihood(Sensor(gain=1.0), values)
    recipe = replace(RECIPE, iterations=800, average_decay=0.8)
    problem = Problem("denoise", target, target.shape[:2], recipe, data_term=term)
    _, outcome = run(problem, recipe, stop="auto", seed=1, placement=placement())
    assert outcome.stop_reason == "discrepancy"
    plan = native(problem, seed=1)
    seen = []
    for _ in range(0, outcome.iterations - 5, 5):
        plan.run(5)
        image, data = (torch.from_numpy(a.astype(float)).permute(2, 0, 1)[None] for a in (plan.average(), target))
        e, k = (500 * a for a in (image, data))
        seen.append((term.discrepancy(image, data), float(((e - k) ** 2 / e.clamp(min=FLOOR)).mean())))
    assert seen[-1][0] <= 1 < min(discrepancy for discrepancy, _ in seen[:-1])
    assert seen[-2][1] <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_threads_do_not_change_a_bit(name, precision):
    weights = []
    for threads in (1, 2, 3):
        plan = native(PROBLEMS[name], precision=precision, threads=threads)
        plan.run(6)
        weights.append(np.concatenate([array.ravel() for array in plan.weights().values()]))
    assert np.array_equal(weights[0], weights[1]) and np.array_equal(weights[0], weights[2])


def test_a_saved_state_goes_on_with_the_same_bits():
    plan = native(PROBLEMS["downsampled"], stop="auto")
    plan.run(7)
    state = plan.save_state()
    plan.run(9)
    other = native(PROBLEMS["downsampled"], stop="auto", seed=99)
    other.run(2)
    other.load_state(state)
    assert other.iteration == 7
    other.run(9)
    assert other.losses[-9:] == plan.losses[-9:]
    assert np.array_equal(other.deliver()[0], plan.deliver()[0])
    for broken, sentence in ((b"", "no state of a fit"), (state[:-1], "load the whole"), (state[:-1] + b"x", "damaged")):
        with pytest.raises(InputError, match=sentence):
            other.load_state(broken)
    with pytest.raises(InputError, match="other params"):
        native(PROBLEMS["identity"]).load_state(state)


def test_the_core_knows_the_architectures_as_python_does():
    rng = np.random.default_rng(0)
    for _ in range(40):
        levels = int(rng.integers(1, 7))
        generator = Hourglass(
            input_depth=int(rng.integers(1, 9)),
            output_channels=int(rng.integers(1, 5)),
            channels_down=tuple(rng.integers(1, 9, levels).tolist()),
            channels_up=tuple(rng.integers(1, 9, levels).tolist()),
            channels_skip=tuple(rng.integers(0, 4, levels).tolist()),
            kernel_down=tuple((1 + 2 * rng.integers(0, 3, levels)).tolist()),
            kernel_up=(3,) * levels,
            upsample=tuple(rng.choice(["nearest", "bilinear"], levels).tolist()),
            one_by_one_up=bool(rng.integers(2)),
            padding=str(rng.choice(["reflection", "zero"])),
        )
        described = native_fit._generator(generator)
        assert backend.native.generator_parameters(described) == generator.parameter_count
        for side in (1, 7, 64, 65, 1000):
            assert backend.native.generator_canvas(described, side) == generator.canvas(side, 1)[0]


def test_the_core_has_the_same_stop_rule():
    for ceiling in (*range(1, 200), 1000, 1800, 2500, 11000):
        for decay in (None, 0.5, 0.9, 0.99):
            rule = StopRule.for_run(ceiling, decay)
            assert backend.native.fit_stop_rule(ceiling, decay or 0.0) == {
                "ceiling": rule.ceiling, "patience": rule.patience, "warm_up": rule.warm_up, "lag": rule.lag
            }


def test_more_memory_than_there_is_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(environment, "memory", lambda: 2**16)
    with pytest.raises(FitError, match="smaller image"):
        native(PROBLEMS["identity"])


def test_a_report_sees_every_iteration_and_may_end_the_run():
    plan = native(PROBLEMS["identity"])
    seen = []
    plan.run(10, report=lambda state: seen.append(state["iteration"]) or state["iteration"] == 6)
    assert seen == [1, 2, 3, 4, 5, 6] and plan.iteration == 6 and len(plan.losses) == 6
    with pytest.raises(ZeroDivisionError):
        plan.run(10, report=lambda state: 1 / 0)
    assert plan.iteration == 7 and len(plan.losses) == 7


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
import dipengine
rng = np.random.default_rng(0)
image = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
common = dict(iterations=3, stop="fixed", channels=8, levels=2)
dipengine.denoise(image, **common)
dipengine.denoise(image, noise="poisson", gain=0.2, **common)
dipengine.denoise(image[:, :, 0], sigma=10, **common)
dipengine.super_resolve(image, 2, **common)
dipengine.dejpeg(image, iterations=2)
dipengine.inpaint(image, random_missing=0.5, **common)
dipengine.flash(image, image, iterations=2, channels=8, levels=2)
result = dipengine.deblur(image, np.ones((3, 3)), **common)
assert result.record["path"] == "plan"
try:
    dipengine.restore(image, operator=lambda x: x, **common)
except dipengine.DependencyError as error:
    assert "PyTorch" in str(error)
else:
    raise AssertionError("a custom operator ran without PyTorch")
print("restored")
"""


def test_built_in_tasks_need_no_torch():
    result = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert result.stdout.strip() == "restored", result.stderr
