"""Recipes and presets say what the recipe table and the documentation say."""

from dataclasses import replace

import numpy as np
import pytest

from dipengine.errors import InputError
from dipengine.images import ValueMap
from dipengine.tasks import PRESETS, TASKS, TaskData, apply_overrides, apply_preset, task_named
from dipengine.tasks.denoise import RECIPE as DENOISE
from dipengine.tasks.inpaint import RECIPES as INPAINT
from dipengine.tasks.inpaint import random_mask


def data(height=8, width=6, channels=3, **changes) -> TaskData:
    fields = {"known": None, "alpha": None, "values": ValueMap(0.0, 255.0)} | changes
    return TaskData(np.full((height, width, channels), 0.5, np.float32), **fields)


def test_paper_preset_is_the_recipe_as_it_stands():
    for recipe in (DENOISE, *INPAINT.values()):
        assert apply_preset(recipe, "paper") == recipe
        assert not recipe.average_warm_up
    assert PRESETS["paper"].stop == "fixed"
    assert DENOISE.iterations == 1800


def test_denoising_recipe_is_the_papers_network():
    assert DENOISE.generator.parameter_count == 2_217_831


def test_balanced_turns_to_nearest_and_averages():
    recipe = apply_preset(INPAINT["missing50"], "balanced")
    assert set(recipe.generator.upsample) == {"nearest"}
    assert (recipe.average_decay, recipe.average_warm_up) == (0.99, True)
    assert recipe.generator.channels_up == INPAINT["missing50"].generator.channels_up


def test_fast_caps_channels_and_leaves_narrow_levels():
    recipe = apply_preset(INPAINT["large-hole"], "fast")
    assert recipe.generator.channels_down == (16, 32, 64, 64, 64, 64)


def test_overrides_take_one_value_or_one_a_level():
    recipe = apply_overrides(DENOISE, iterations=7, levels=3, channels=(16,), skips=(0, 4, 8), upsample=("nearest",))
    generator = recipe.generator
    assert (recipe.iterations, generator.levels) == (7, 3)
    assert generator.channels_down == generator.channels_up == (16, 16, 16)
    assert generator.channels_skip == (0, 4, 8)
    assert generator.upsample == ("nearest",) * 3
    with pytest.raises(InputError, match="2 values for 3 levels"):
        apply_overrides(DENOISE, levels=3, channels=(16, 32))


@pytest.mark.parametrize("name", INPAINT)
def test_inpainting_of_what_is_thin_or_scattered_holds_pixels_out(name):
    made = {
        preset: task_named("inpaint").problem(data(40, 40), preset, random_missing=0.5, recipe=name).recipe for preset in PRESETS
    }
    assert made["paper"] == INPAINT[name] and made["paper"].hold_out == 0
    assert made["balanced"] == made["fast"]
    assert made["fast"].hold_out == (0.1 if name in ("text", "missing50") else 0)
    changed = {"learning_rate": 0.01, "iterations": 6000} if name == "missing50" else {}
    assert made["fast"] == replace(INPAINT[name], hold_out=made["fast"].hold_out, **changed)


@pytest.mark.parametrize("sigma, perturbation", [(25.0, 1 / 30), (50.0, 1 / 20)])
def test_known_sigma_chooses_the_authors_perturbation(sigma, perturbation):
    problem = task_named("denoise").problem(data(), "balanced", sigma=sigma)
    assert problem.recipe.perturbation == perturbation
    assert problem.sigma == pytest.approx(sigma / 255)


@pytest.mark.parametrize("sigma", [-1.0, 0.0, float("nan"), float("inf"), 300.0])
def test_impossible_sigma_is_refused(sigma):
    with pytest.raises(InputError, match="sigma"):
        task_named("denoise").problem(data(), "balanced", sigma=sigma)


def test_superres_shapes_and_length():
    problem = task_named("superres").problem(data(5, 7), "paper", factor=8)
    assert problem.output_shape == (40, 56)
    assert (problem.recipe.iterations, problem.recipe.perturbation) == (4000, 0.05)
    for factor in (0, 1, 5, -2):
        with pytest.raises(InputError, match="factor"):
            task_named("superres").problem(data(), "paper", factor=factor)


def test_inpainting_needs_to_be_told_what_is_missing():
    with pytest.raises(InputError, match="which pixels are missing"):
        task_named("inpaint").problem(data(), "balanced")


def test_alpha_tells_what_is_missing():
    alpha = np.ones((8, 6), np.float32)
    alpha[2, 3] = 0
    problem = task_named("inpaint").problem(data(alpha=alpha), "balanced")
    assert not problem.known[2, 3] and problem.known.sum() == 47
    assert problem.parameters["mask"] == "alpha"


def test_missing_values_are_missing_under_any_mask():
    known = np.ones((8, 6), bool)
    known[0, 0] = False
    mask = np.ones((8, 6), bool)
    mask[1, 1] = False
    problem = task_named("inpaint").problem(data(known=known), "balanced", mask=mask)
    assert not problem.known[0, 0] and not problem.known[1, 1] and problem.known.sum() == 46


def test_inverted_mask_and_all_missing():
    mask = np.zeros((8, 6), bool)
    problem = task_named("inpaint").problem(data(), "balanced", mask=mask, invert_mask=True)
    assert problem.known.all()
    with pytest.raises(InputError, match="no pixel known"):
        task_named("inpaint").problem(data(), "balanced", mask=mask)
    with pytest.raises(InputError, match="one size"):
        task_named("inpaint").problem(data(), "balanced", mask=np.ones((6, 8), bool))


def test_random_mask_drops_the_fraction_asked_for_and_repeats():
    mask = random_mask((200, 200), 0.3, seed=5)
    assert mask.mean() == pytest.approx(0.7, abs=0.01)
    assert (mask == random_mask((200, 200), 0.3, seed=5)).all()
    assert (mask != random_mask((200, 200), 0.3, seed=6)).any()
    with pytest.raises(InputError, match="fraction"):
        random_mask((2, 2), 1.0, 0)


def test_every_task_can_be_found():
    assert set(TASKS) == {"denoise", "dejpeg", "superres", "inpaint", "flash", "deblur", "custom"}
    with pytest.raises(InputError, match="no task"):
        task_named("colourise")
