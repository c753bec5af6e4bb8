"""Images of several sizes in the slots of one plan: each gives the bits that it gives alone, and its own history."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from conftest import synthetic_picture
from dipengine import environment
from dipengine.errors import FitError, InputError, OutOfMemory
from dipengine.fitting.device import Placement
from dipengine.fitting.run import FitRun, advance_together
from dipengine.fitting.warm_start import WarmStart
from dipengine.generators.architecture import Hourglass
from dipengine.images import ValueMap
from dipengine.kernels import backend
from dipengine.noise.likelihood import SensorLikelihood
from dipengine.noise.sensor import Sensor
from dipengine.tasks.base import Problem, Recipe
from dipengine.tasks.blur import Blur
from dipengine.tasks.downsampling import Downsampling

pytestmark = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")
if backend.native_available():
    from dipengine.fitting.native_cohort import NativeCohort, cohort_bytes, cohort_key
    from dipengine.fitting.native_fit import NativeFit

SMALL = Hourglass.regular(levels=2, channels_down=8, channels_up=8, channels_skip=4, upsample="nearest", input_depth=8)
RECIPE = Recipe(SMALL, iterations=40, average_decay=0.9, average_warm_up=True)
CANVAS = (24, 32)
SIZES = [(21, 30), (24, 29), (22, 32), (23, 31)]  # all on that canvas
KERNEL = np.random.default_rng(3).random((3, 4))
KERNEL /= KERNEL.sum()
SENSOR = SensorLikelihood(Sensor(gain=40.0, offset=0.02, read_noise=0.05), ValueMap(0.0, 1.0))


def picture(height: int, width: int, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(height * 100 + width)
    return np.clip(synthetic_picture(height, width) + rng.normal(0, noise, (height, width, 3)), 0, 1).astype(np.float32)


def holes(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).random((height, width)) > 0.2


def problem_of(task: str, size: tuple[int, int]) -> Problem:
    height, width = size
    if task == "masked":
        return Problem("inpaint", picture(*size), size, RECIPE, known=holes(*size))
    if task == "held out":
        return Problem("inpaint", picture(*size), size, replace(RECIPE, hold_out=0.3), known=holes(*size))
    if task == "known noise":
        return Problem("denoise", picture(*size), size, RECIPE, sigma=0.02 * (height - 18))  # each image its own
    if task == "downsampled":
        shape = (-(-height // 3), -(-width // 3))
        return Problem("superres", picture(*shape), size, RECIPE, operator=Downsampling(3), known=holes(*shape))
    if task == "blurred sensor":
        shape = (height - 2, width - 3)
        return Problem("deblur", picture(*shape), size, RECIPE, operator=Blur(KERNEL), data_term=SENSOR)
    if task == "image code":
        recipe = replace(RECIPE, code="image", average_decay=None)
        return Problem("flash", picture(*size), size, recipe, guide=picture(*size, noise=0.0))
    return Problem("denoise", picture(*size), size, RECIPE)


TASKS = ["identity", "masked", "held out", "known noise", "downsampled", "blurred sensor", "image code"]


def placement(threads=1, precision="fp32") -> Placement:
    return Placement("cpu", precision, "native", threads)


def cohort_of(problem: Problem, slots=3, stop="auto", threads=1, precision="fp32") -> NativeCohort:
    return NativeCohort(problem, problem.recipe, placement(threads, precision), stop, slots)


def run_of(problem: Problem, seed: int, cohort=None, stop="auto", precision="fp32", measured=False) -> FitRun:
    def measure(image: np.ndarray) -> float:
        return float(-10 * np.log10(np.square(image - 0.5).mean()))

    return FitRun(
        problem, problem.recipe, stop=stop, seed=seed, placement=placement(precision=precision), cohort=cohort,
        measure=measure if measured else None,
    )


def alone(problem: Problem, seed: int, **options):
    run = run_of(problem, seed, **options)
    run.advance(run.ceiling)
    return run


def assert_same(run: FitRun, whole: FitRun) -> None:
    ours, theirs = run.outcome(), whole.outcome()
    assert np.array_equal(ours.image, theirs.image)
    assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
    assert ours.history == theirs.history
    assert (ours.iterations, ours.best_iteration, ours.stop_reason, ours.rollbacks) == (
        theirs.iterations, theirs.best_iteration, theirs.stop_reason, theirs.rollbacks
    )
    assert np.array_equal(run.fit.average(), whole.fit.average()) and np.array_equal(run.fit.render(), whole.fit.render())
    assert run.fit.save_state() == whole.fit.save_state()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_images_of_one_canvas_come_and_go_and_each_has_the_bits_of_itself_alone(task, precision):
    problems = [problem_of(task, size) for size in SIZES]
    whole = [alone(problem, seed, precision=precision) for seed, problem in enumerate(problems)]
    for threads in (1, 2, 3):
        cohort = cohort_of(problems[0], threads=threads, precision=precision)
        begin = [run_of(problem, seed, cohort, precision=precision) for seed, problem in enumerate(problems[:2])]
        assert cohort.free == 1
        assert advance_together(cohort, begin, 5) == {}
        assert [run.iteration for run in begin] == [5, 5]
        begin[1].advance(3)  # by itself
        third = run_of(problems[2], 2, cohort, precision=precision)
        assert cohort.free == 0
        advance_together(cohort, [begin[0], third], 40)
        assert begin[0].finished and third.finished and begin[1].iteration == 8
        assert_same(begin[0], whole[0])
        begin[0].fit.close()
        last = run_of(problems[3], 3, cohort, precision=precision)  # where the first was
        advance_together(cohort, [begin[1], third, last], 40)
        for run, expected in ((begin[1], whole[1]), (third, whole[2]), (last, whole[3])):
            assert_same(run, expected)


def test_the_cohort_itself_advances_its_slots_and_tells_which_ended():
    problems = [problem_of("identity", size) for size in SIZES[:2]]
    cohort = cohort_of(problems[0], slots=2, stop="fixed")
    first = cohort.open(problems[0], RECIPE, 0, "fixed")
    assert cohort.advance(30) == []
    second = cohort.open(problems[1], RECIPE, 1, "fixed")
    assert cohort.advance(15) == [first] and not first.running and second.running
    assert (len(first.losses), len(second.losses)) == (40, 15)
    assert cohort.advance(100) == [second] and cohort.advance(1) == []
    for slot, problem, seed in ((first, problems[0], 0), (second, problems[1], 1)):
        plan = NativeFit(problem, RECIPE, seed, placement(), "fixed")
        plan.run(40)
        assert (slot.losses, slot.variances) == (plan.losses, plan.variances) and slot.iteration == 40
        assert all(np.array_equal(a, b) for a, b in zip(slot.deliver()[:1], plan.deliver()[:1]))
        assert all(np.array_equal(slot.statistics()[name], value) for name, value in plan.statistics().items())


def test_a_report_lets_its_own_slot_sit_out():
    cohort = cohort_of(problem_of("identity", SIZES[0]), slots=2, stop="fixed")
    first, second = (cohort.open(problem_of("identity", size), RECIPE, 0, "fixed") for size in SIZES[:2])
    seen = []
    cohort.advance(6, reports={first: lambda progress: seen.append(progress["iteration"]) or progress["iteration"] == 2})
    assert seen == [1, 2] and (len(first.losses), len(second.losses)) == (2, 6)
    with pytest.raises(ZeroDivisionError):
        cohort.advance(6, reports={second: lambda progress: 1 / 0})
    assert (first.iteration, second.iteration) == (3, 7) and (len(first.losses), len(second.losses)) == (3, 7)
    cohort.advance(4, slots=[second])
    assert (first.iteration, second.iteration) == (3, 11)


def test_truth_and_callbacks_are_each_runs_own():
    problems = [problem_of("identity", size) for size in SIZES[:2]]
    cohort = cohort_of(problems[0])
    runs = [run_of(problem, seed, cohort, measured=True) for seed, problem in enumerate(problems)]
    advance_together(cohort, runs, 17, progress={runs[0]: lambda report: report.iteration == 12})
    assert runs[0].stop_reason == "callback" and (runs[0].iteration, runs[1].iteration) == (12, 17)
    advance_together(cohort, runs, 40)
    assert runs[0].iteration == 12 and runs[1].finished
    assert_same(runs[1], alone(problems[1], 1, measured=True))
    assert all(run.seconds > 0 for run in runs)


@pytest.mark.parametrize("task", TASKS)
def test_checkpoints_move_between_a_cohort_and_a_fit_alone(task):
    problem, other = problem_of(task, SIZES[1]), problem_of(task, CANVAS)
    whole = alone(problem, 5)
    cohort = cohort_of(other)
    beside, run = run_of(other, 1, cohort), run_of(problem, 5, cohort)
    advance_together(cohort, [beside, run], 12)

    def through_json(state):
        return state[0], json.loads(json.dumps(state[1], allow_nan=False))

    apart = run_of(problem, 5)
    apart.restore(*through_json(run.state()))
    run.fit.close()
    apart.advance(9)
    back = run_of(problem, 5, cohort)
    back.restore(*through_json(apart.state()))
    assert back.iteration == back.resumed_at == 21
    advance_together(cohort, [beside, back], 40)
    apart.advance(40)
    assert_same(back, whole)
    assert_same(apart, whole)


@pytest.mark.parametrize("code", ["noise", "meshgrid"])
def test_a_slot_begins_with_another_ones_generator_as_a_fit_alone_does(code):
    generator = SMALL if code == "noise" else replace(SMALL, input_depth=2)
    recipe = replace(RECIPE, generator=generator, code=code)
    problem, other = (replace(problem_of("identity", size), recipe=recipe) for size in SIZES[:2])
    first = alone(other, 9).fit
    init = WarmStart(first.weights(), first.recipe.generator, first.code.to_dict(), CANVAS, "generator", 40, "0" * 64)
    plan = NativeFit(problem, recipe, 4, placement(), "auto", init)
    plan.run(40)
    cohort = cohort_of(problem)
    slots = [cohort.open(problem, recipe, 4, "auto", begin) for begin in (None, init)]
    cohort.advance(40)
    assert slots[1].save_state() == plan.save_state() != slots[0].save_state()
    assert slots[1].losses == plan.losses and np.array_equal(slots[1].deliver()[0], plan.deliver()[0])
    assert slots[1].code.to_dict() == plan.code.to_dict()


def test_a_state_of_another_size_is_no_state_of_this_image():
    problem, smaller = problem_of("identity", CANVAS), problem_of("identity", SIZES[0])
    plan, other = (NativeFit(p, RECIPE, 0, placement(), "auto") for p in (problem, smaller))
    slot = cohort_of(problem).open(smaller, RECIPE, 0, "auto")
    slot.load_state(other.save_state())
    for fit, state in ((plan, other.save_state()), (other, plan.save_state()), (slot, plan.save_state())):
        before = fit.save_state()
        with pytest.raises(InputError, match="its image is"):
            fit.load_state(state)
        assert fit.save_state() == before


def test_threads_are_those_of_the_whole_cohort():
    problems = [problem_of("masked", size) for size in SIZES[:2]]
    cohort = cohort_of(problems[0])
    runs = [run_of(problem, seed, cohort) for seed, problem in enumerate(problems)]
    for threads in (1, 3, 3, 2):
        runs[1].set_threads(threads)
        assert all(run.fit.placement.threads == cohort.placement.threads == threads for run in runs)
        advance_together(cohort, runs, 6)
    advance_together(cohort, runs, 40)
    for seed, run in enumerate(runs):
        assert_same(run, alone(problems[seed], seed))


def test_a_failing_image_fails_alone():
    good, other = problem_of("identity", SIZES[0]), problem_of("identity", SIZES[1])
    cohort = cohort_of(good)
    broken = replace(good, target=np.full_like(good.target, np.nan))
    with pytest.raises(InputError, match="not finite"):
        run_of(broken, 1, cohort)
    assert cohort.free == 3
    runs = [run_of(problem, seed, cohort) for seed, problem in enumerate((good, other, good))]
    weights = runs[1].fit.weights()
    runs[1].fit.load_weights({name: np.full_like(value, np.nan) for name, value in weights.items()})
    failures = advance_together(cohort, runs, 40)
    assert list(failures) == [runs[1]] and isinstance(failures[runs[1]], FitError)
    assert "first loss" in str(failures[runs[1]]) and runs[1].iteration == len(runs[1].fit.losses) == 1
    assert_same(runs[0], alone(good, 0))
    runs[1].fit.close()
    again = run_of(other, 1, cohort)
    with pytest.raises(FitError):
        again.fit.load_weights({name: np.full_like(value, np.nan) for name, value in weights.items()})
        again.advance(1)
    again.fit.close()
    again = run_of(other, 1, cohort)
    again.advance(40)
    assert_same(again, alone(other, 1))


def test_roll_backs_are_each_images_own():
    # So small a jump counts as a failure that roll-backs, halved steps and new levels all come to pass.
    recipe = replace(RECIPE, rollback_db=1e-3, iterations=160)
    problems = [replace(problem_of("identity", size), recipe=recipe) for size in SIZES[:2]]
    whole = [alone(problem, seed, stop="fixed") for seed, problem in enumerate(problems)]
    assert all(run.fit.rollbacks for run in whole)
    cohort = cohort_of(problems[0], stop="fixed")
    runs = [run_of(problem, seed, cohort, stop="fixed") for seed, problem in enumerate(problems)]
    runs[1].advance(11)
    advance_together(cohort, runs, 160)
    for run, expected in zip(runs, whole):
        assert_same(run, expected)


def test_only_images_of_the_same_kind_enter():
    problem = problem_of("identity", SIZES[0])
    cohort = cohort_of(problem)
    for size in [*SIZES, CANVAS]:
        assert cohort.compatible(problem_of("identity", size), RECIPE, placement(threads=2), "auto")
    others = {
        "another canvas": (problem_of("identity", (20, 30)), RECIPE),
        "turned": (problem_of("identity", (30, 21)), RECIPE),
        "known noise": (problem_of("known noise", SIZES[0]), RECIPE),
        "an operator": (problem_of("downsampled", SIZES[0]), RECIPE),
        "a ceiling": (problem, replace(RECIPE, iterations=41)),
        "a network": (problem, replace(RECIPE, generator=replace(SMALL, upsample=("bilinear",) * 2))),
        "channels": (replace(problem, target=problem.target[:, :, :1].copy()), RECIPE),
    }
    for name, (other, recipe) in others.items():
        assert not cohort.compatible(other, recipe, placement(), "auto"), name
        with pytest.raises(InputError, match="another canvas, task"):
            cohort.open(other, recipe, 0, "auto")
    assert not cohort.compatible(problem, RECIPE, placement(precision="bf16"), "auto")
    assert not cohort.compatible(problem, RECIPE, placement(), "fixed")
    with pytest.raises(InputError, match="precision"):
        run_of(problem, 0, cohort, precision="bf16")
    assert cohort_key(problem, RECIPE, Placement("cpu", "fp32", "torch", 1), "auto") is None
    assert cohort.free == 3


def test_a_slot_belongs_to_its_image_until_it_is_closed():
    problem = problem_of("identity", SIZES[0])
    cohort = cohort_of(problem, slots=1)
    slot = cohort.open(problem, RECIPE, 0, "auto")
    with pytest.raises(InputError, match="hold images"):
        cohort.open(problem, RECIPE, 0, "auto")
    cohort.advance(3)
    slot.close()
    slot.close()
    assert cohort.free == 1 and cohort.open_slots == [] and len(slot.losses) == 3
    other = cohort.open(problem, RECIPE, 1, "auto")
    for ask in (slot.deliver, slot.average, slot.progress, slot.save_state, lambda: slot.run(1)):
        with pytest.raises(InputError, match="closed"):
            ask()
    with pytest.raises(InputError, match="gradients"):
        other.gradients()


@pytest.mark.parametrize("task", TASKS)
def test_the_memory_of_a_cohort_is_known_before(task, monkeypatch):
    problem = problem_of(task, SIZES[0])
    cohort = cohort_of(problem)
    assert cohort.arena_bytes == cohort_bytes(problem, problem.recipe, placement(), "auto", 3)
    assert cohort.arena_bytes > cohort_bytes(problem, problem.recipe, placement(), "auto", 2)
    monkeypatch.setattr(environment, "memory", lambda: 2**16)
    with pytest.raises(OutOfMemory, match="smaller image"):
        cohort_of(problem)
    with pytest.raises(InputError, match="at least 1"):
        cohort_of(problem, slots=0)
