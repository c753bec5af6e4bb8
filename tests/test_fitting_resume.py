"""A fit that is advanced in pieces, saved, and continued elsewhere gives the bits of one that runs through."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from conftest import TINY, synthetic_picture
from dipengine.errors import InputError
from dipengine.fitting import identity, native_fit
from dipengine.fitting.device import Placement
from dipengine.fitting.run import FitRun
from dipengine.fitting.settings import Settings
from dipengine.generators.architecture import Hourglass
from dipengine.images import from_array
from dipengine.kernels import backend
from dipengine.restoration import begin_restoration, restore_image
from dipengine.tasks.base import Problem, Recipe
from dipengine.tasks.downsampling import Downsampling

SMALL = Hourglass.regular(levels=2, channels_down=8, channels_up=8, channels_skip=4, upsample="nearest", input_depth=8)
RECIPE = Recipe(SMALL, iterations=150, average_decay=0.9, average_warm_up=True)
CLEAN = synthetic_picture(24, 30).astype(np.float32)
NOISY = np.clip(CLEAN + np.random.default_rng(0).normal(0, 0.1, CLEAN.shape), 0, 1).astype(np.float32)
NOISIER = np.clip(CLEAN + np.random.default_rng(0).normal(0, 0.25, CLEAN.shape), 0, 1).astype(np.float32)
KNOWN = np.ones(NOISY.shape[:2], bool)
KNOWN[3:9, 5:20] = False
PROBLEMS = {
    "by variance": Problem("denoise", NOISIER, NOISY.shape[:2], RECIPE),
    "known noise": Problem("denoise", NOISY, NOISY.shape[:2], RECIPE, sigma=0.1, known=KNOWN),
    "held out": Problem(
        "inpaint", NOISIER, NOISY.shape[:2], replace(RECIPE, iterations=250, average_decay=0.8, hold_out=0.2), known=KNOWN
    ),
    "operator": Problem("superres", NOISY, (48, 60), replace(RECIPE, average_decay=None, iterations=60), operator=Downsampling(2)),
    # So small a jump counts as a failure that roll-backs, halved steps and new levels all come to pass.
    "rolled back": Problem("denoise", NOISY, NOISY.shape[:2], replace(RECIPE, rollback_db=1e-3, iterations=250)),
    "image code": Problem("flash", NOISY, NOISY.shape[:2], replace(RECIPE, code="image"), guide=CLEAN),
}
PATHS = ["plan", "autograd"]
needs_core = pytest.mark.skipif(not backend.native_available(), reason="needs the native core")


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    if request.param == "plan":
        if not backend.native_available():
            pytest.skip("needs the native core")
    else:
        request.getfixturevalue("one_torch_thread")
        monkeypatch.setattr(native_fit, "supports", lambda *_: False)
    return request.param


def measure(image: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(image - CLEAN[: image.shape[0], : image.shape[1]]).mean()))


def start(name="by variance", stop="auto", seed=3, threads=1, precision="fp32", problem=None, truth=True) -> FitRun:
    problem = problem or PROBLEMS[name]
    return FitRun(
        problem, problem.recipe, stop=stop, seed=seed, placement=Placement("cpu", precision, "native", threads),
        measure=measure if truth and problem.shape == CLEAN.shape else None,
    )


def through_json(state):
    tensors, metadata = state
    return {name: np.array(array) for name, array in tensors.items()}, json.loads(json.dumps(metadata, allow_nan=False))


def assert_same(run: FitRun, whole: FitRun) -> None:
    ours, theirs = run.outcome(), whole.outcome()
    assert (ours.iterations, ours.best_iteration, ours.stop_reason, ours.rollbacks) == (
        theirs.iterations, theirs.best_iteration, theirs.stop_reason, theirs.rollbacks
    )
    assert ours.history == theirs.history
    assert np.array_equal(ours.image, theirs.image)
    assert all(np.array_equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
    tensors, metadata = run.state()
    expected, same = whole.state()
    assert tensors.keys() == expected.keys()
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    assert {**metadata, "seconds": 0} == {**same, "seconds": 0}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_continued_fit_gives_the_bits_of_an_uninterrupted_one(name, path):
    whole = start(name)
    assert whole.advance(whole.ceiling)
    if name == "by variance":
        assert whole.stop_reason == "variance" and 0 < whole.outcome().best_iteration < whole.iteration < whole.ceiling
    if name == "known noise":
        assert whole.stop_reason == "discrepancy"
    moments = [1, 29, whole.iteration - 1, whole.iteration]
    if name == "held out":
        # Just before the pixels were shown, at that iteration, behind the next, and on the way to the end.
        assert whole.stop_reason == "held-out" and whole.iteration < whole.ceiling
        moments += [whole.iteration - ago for ago in (26, 25, 24, 7)]
    if name == "rolled back":
        assert whole.outcome().rollbacks > 20
    for first in moments:
        run = start(name)
        run.advance(first)
        state = through_json(run.state())
        other = start(name)
        other.advance(7)  # nothing of what it did stays
        other.restore(*state)
        assert (other.iteration, other.resumed_at, other.seconds) == (first, first, run.seconds)
        other.advance(other.ceiling)
        assert_same(other, whole)


def test_a_fit_dealt_out_in_pieces_and_looked_at_on_the_way_is_the_same(path):
    whole, pieces = start(), start()
    whole.advance(whole.ceiling)
    while not pieces.advance(7):
        pieces.outcome()
        pieces.state()
    assert pieces.finished and pieces.advance(5)
    assert_same(pieces, whole)


def test_a_fit_saved_before_its_first_iteration_goes_on(path):
    run, whole = start(), start()
    state = through_json(run.state())
    run.advance(3)
    run.restore(*state)
    assert run.iteration == 0
    run.advance(5)
    whole.advance(5)
    assert_same(run, whole)


@needs_core
def test_other_threads_from_now_on_change_no_bit():
    whole, run = start(), start()
    whole.advance(40)
    for threads in (2, 3, 1, 1):
        run.advance(10)
        run.set_threads(threads)
    assert_same(run, whole)


def test_a_callback_finishes_a_fit_for_good(path):
    run = start()
    assert run.advance(50, lambda report: report.iteration == 12)
    assert (run.iteration, run.stop_reason) == (12, "callback") and run.advance(10) and run.iteration == 12
    again = start()
    again.restore(*through_json(run.state()))
    assert again.finished and again.outcome().stop_reason == "callback"


def test_an_unfinished_fit_is_delivered_with_the_reason_given(path):
    run = start()
    run.advance(4)
    assert (run.outcome().stop_reason, run.outcome("stopped").stop_reason) == ("interrupted", "stopped")
    assert run.outcome().iterations == 4


def test_a_fit_broken_off_within_an_iteration_is_not_saved(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(native_fit, "supports", lambda *_: False)
    run = start()
    run.advance(3)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(run.fit.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.advance(3)
    with pytest.raises(InputError, match="broken off"):
        run.state()
    assert run.outcome().iterations == 3


OTHERS = {
    "seed": lambda: start(seed=4),
    "stop": lambda: start(stop="fixed"),
    "image": lambda: start(problem=replace(PROBLEMS["by variance"], target=CLEAN)),
    "mask": lambda: start(problem=replace(PROBLEMS["by variance"], known=KNOWN)),
    "noise": lambda: start(problem=replace(PROBLEMS["by variance"], sigma=0.2)),
    "recipe": lambda: start(problem=replace(PROBLEMS["by variance"], recipe=replace(RECIPE, learning_rate=0.02))),
    "guide": lambda: start(problem=replace(PROBLEMS["image code"], guide=1 - CLEAN)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_image_or_other_parameters_is_refused(other, path):
    run = start("image code" if other == "guide" else "by variance")
    run.advance(3)
    state = run.state()
    receiver = OTHERS[other]()
    receiver.advance(2)
    before = receiver.state()
    with pytest.raises(InputError, match="another image or other parameters"):
        receiver.restore(*state)
    assert all(np.array_equal(before[0][name], array) for name, array in receiver.state()[0].items())


@pytest.mark.parametrize("what", ["build", "instruction_set", "device", "precision", "kernels", "path"])
def test_a_state_from_elsewhere_is_refused_by_name(what, path):
    run = start()
    run.advance(2)
    tensors, metadata = through_json(run.state())
    metadata["where"][what] = "elsewhere"
    with pytest.raises(InputError, match="The saved fit (is of engine|ran (on|in)) .*elsewhere") as refused:
        run.restore(tensors, metadata)
    assert str(refused.value).count(". ") == 0 and run.resumed_at is None


@needs_core
def test_another_precision_or_instruction_set_is_noticed(monkeypatch):
    run = start(precision="fp32")
    run.advance(1)
    with pytest.raises(InputError, match="--precision fp32"):
        start(precision="bf16").restore(*run.state())
    state = run.state()
    monkeypatch.setattr(backend.native, "cpu_isa", lambda: "another")
    with pytest.raises(InputError, match="DIPENGINE_ISA"):
        start().restore(*state)


def damage(tensors, metadata, how):
    if how.startswith("no "):
        del tensors[next(name for name in tensors if name.startswith(how[3:]))]
    elif how == "truncated":
        name = "state" if "state" in tensors else "adam/m"
        tensors[name] = tensors[name][:-8]
    elif how == "flipped":
        if "state" in tensors:
            tensors["state"][len(tensors["state"]) // 2] ^= 1
        else:
            tensors["parameters/head.conv.bias"] = tensors["parameters/head.conv.bias"].astype(np.float64)
    elif how == "iteration":
        metadata["iteration"] += 1
    elif how == "history":
        tensors["losses"] = tensors["losses"][:-1]
    else:
        metadata["numbers"] = how
        metadata.pop("iteration")


@pytest.mark.parametrize(
    "how", ["no state", "no parameters/", "no losses", "no outputs/", "truncated", "flipped", "iteration", "history", "numbers"]
)
def test_a_damaged_state_is_refused_and_leaves_the_fit_alone(how, path):
    if how == {"plan": "no outputs/", "autograd": "no state"}[path]:
        pytest.skip("not of this path")
    run = start()
    run.advance(5)
    tensors, metadata = through_json(run.state())
    run.advance(4)
    before = copy.deepcopy(run.state())
    damage(tensors, metadata, how)
    with pytest.raises(InputError, match="damaged|load the whole|params"):
        run.restore(tensors, metadata)
    after = run.state()
    assert all(np.array_equal(before[0][name], array) for name, array in after[0].items()) and after[1] == before[1]


def test_the_engine_build_is_named():
    assert identity.engine_build().startswith(identity.__version__)


@needs_core
def test_a_restoration_whose_fit_is_advanced_from_outside_is_restore_image(noisy):
    image, truth = from_array(noisy)[0], from_array(noisy[::-1].copy())[0]
    settings = Settings(iterations=12, stop="fixed", channels=(8,), levels=2, threads=1)
    expected = restore_image(image, "denoise", {}, settings, truth=truth)
    restoring = begin_restoration(image, "denoise", {}, settings, truth=truth)
    while not restoring.run.advance(5):
        pass
    restored = restoring.finish()
    assert np.array_equal(restored.pixels, expected.pixels) and restored.history == expected.history
    for record in (restored.record, expected.record):
        for name in ("seconds", "seconds_per_iteration", "peak_memory_bytes"):
            record.pop(name)
    assert restored.record == expected.record and expected.record["resumed_at"] is None


def test_a_custom_operators_restoration_is_continued(noisy, one_torch_thread):
    image = from_array(noisy)[0]
    options = {"operator": lambda x: x.flip(3)}
    settings = Settings(channels=(8,), levels=2, **{name: TINY[name] for name in ("iterations", "stop", "threads")})
    expected = restore_image(image, "custom", options, settings)
    first = begin_restoration(image, "custom", options, settings)
    first.run.advance(5)
    second = begin_restoration(image, "custom", options, settings)
    second.run.restore(*through_json(first.run.state()))
    second.run.advance(100)
    restored = second.finish()
    assert np.array_equal(restored.pixels, expected.pixels) and restored.record["resumed_at"] == 5
