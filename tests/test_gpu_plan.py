"""The native plan on a GPU, beside what test_cuda_plan.py has of it there: the paper's network, long runs and cohorts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import test_cuda_plan as emulated  # noqa: E402
from conftest import synthetic_picture  # noqa: E402
from test_cuda_plan import GPU  # noqa: E402

from dipengine.fitting.device import place  # noqa: E402
from dipengine.fitting.native_cohort import NativeCohort  # noqa: E402
from dipengine.fitting.native_fit import NativeFit  # noqa: E402
from dipengine.fitting.settings import Settings  # noqa: E402
from dipengine.generators.architecture import Hourglass  # noqa: E402
from dipengine.kernels import backend  # noqa: E402
from dipengine.tasks.base import Problem, Recipe  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_torch_thread", "gpu")]
PAPERS = Recipe(Hourglass.regular(upsample="nearest"), iterations=400, average_decay=0.99, average_warm_up=True)


@pytest.fixture
def gpu():
    if backend.native is None or backend.cuda_missing():
        pytest.skip(f"needs a core with CUDA kernels and a GPU: {backend.native_error() or backend.cuda_missing()}")


def picture_problem(height: int, width: int, recipe: Recipe, seed: int = 0) -> Problem:
    noise = np.random.default_rng(seed).normal(0, 0.1, (height, width, 3))
    return Problem("denoise", np.clip(synthetic_picture(height, width) + noise, 0, 1).astype(np.float32), (height, width), recipe)


def test_auto_takes_the_gpu_and_bf16():
    placement = place(Settings())
    assert (placement.device, placement.precision, placement.kernels) == ("cuda:0", "bf16", "native")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_steps_of_the_papers_network_are_as_near_to_float64_as_plain_pytorchs(precision, monkeypatch):
    monkeypatch.setitem(emulated.RECIPES, "papers", PAPERS)
    monkeypatch.setattr(emulated, "PROBLEM", picture_problem(64, 96, PAPERS))
    emulated.test_steps_from_recorded_states_are_as_near_to_float64_as_plain_pytorchs(None, "papers", precision, monkeypatch)


def test_a_state_goes_from_the_gpu_to_a_cpu_and_back():
    problem = picture_problem(250, 256, PAPERS)
    on_gpu, on_cpu = (NativeFit(problem, PAPERS, 1, placement, "fixed") for placement in (GPU, replace(GPU, device="cpu")))
    on_gpu.run(30)
    state = on_gpu.save_state()
    on_cpu.load_state(state)
    assert on_cpu.save_state() == state
    on_gpu.run(1)
    on_cpu.run(1)
    assert on_gpu.losses[-1] == pytest.approx(on_cpu.losses[-1], rel=1e-2)


def test_every_run_has_the_same_bits_and_many_replays_those_of_single_ones():
    problem = picture_problem(256, 256, PAPERS)
    whole, again, single = (NativeFit(problem, PAPERS, 1, GPU, "fixed") for _ in range(3))
    whole.run(300)
    again.run(300)
    for _ in range(300):
        single.run(1)
    assert whole.save_state() == again.save_state() == single.save_state() and whole.losses == single.losses


@pytest.mark.parametrize("size", [64, 256, 700])
def test_bits_are_the_same_where_launches_overlap_and_where_they_do_not(size, monkeypatch):
    problem = picture_problem(size, size, PAPERS)
    states = []
    for overlap in ("1", "0"):
        monkeypatch.setenv("DIPENGINE_CUDA_OVERLAP", overlap)
        fit = NativeFit(problem, PAPERS, 1, GPU, "fixed")
        fit.run(200 if size < 300 else 40)
        states.append(fit.save_state())
    assert states[0] == states[1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fits_in_a_cohort_have_the_bits_that_they_have_alone(precision):
    placement = replace(GPU, precision=precision)
    problems = [picture_problem(128, 128, PAPERS, seed) for seed in range(4)]

    def alone(seed: int, iterations: int) -> bytes:
        fit = NativeFit(problems[seed], PAPERS, seed, placement, "fixed")
        fit.run(iterations)
        return fit.save_state()

    cohort = NativeCohort(problems[0], PAPERS, placement, "fixed", 3)
    slots = [cohort.open(problem, PAPERS, seed, "fixed") for seed, problem in enumerate(problems[:3])]
    cohort.advance(20)
    cohort.advance(5, slots=slots[::2])
    assert [slot.save_state() for slot in slots] == [alone(0, 25), alone(1, 20), alone(2, 25)]
    slots[1].close()
    refilled = cohort.open(problems[3], PAPERS, 3, "fixed")
    cohort.advance(10)
    assert refilled.save_state() == alone(3, 10) and slots[0].save_state() == alone(0, 35)


def test_a_fit_restores_and_stops_by_itself():
    truth = synthetic_picture(128, 128).astype(np.float32)
    noisy = np.clip(truth + np.random.default_rng(1).normal(0, 0.1, truth.shape), 0, 1).astype(np.float32)
    recipe = replace(PAPERS, iterations=1800)
    fit = NativeFit(Problem("denoise", noisy, truth.shape[:2], recipe, sigma=0.1), recipe, 0, GPU, "auto")
    fit.run(1800)
    image, _, _ = fit.deliver()
    before, after = (float(np.square(x - truth).mean()) for x in (noisy, np.clip(image, 0, 1)))
    assert fit.reason == "discrepancy" and after < before / 5
