"""The architecture as plain data: counts, names, canvas, validation, and that none of it needs torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from generator_parity import RECIPES

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.generators.hourglass import HourglassNetwork


def test_the_papers_network_has_its_published_parameter_count():
    assert Hourglass().parameter_count == 2_217_831
    assert Hourglass.regular() == Hourglass()


def test_the_papers_network_has_25_dead_biases_and_5_dead_betas():
    dead = [spec.name for spec in Hourglass().parameters() if spec.dead]
    assert sum(name.endswith("conv.bias") for name in dead) == 25
    assert sorted(name for name in dead if name.endswith("beta")) == [f"level{i}.merge.norm.beta" for i in range(5)]
    assert len(dead) == 30


def test_zero_padding_revives_the_merge_betas_except_in_front_of_a_1x1():
    architecture = Hourglass.regular(3, padding="zero", kernel_up=(3, 1, 5))
    dead = {spec.name for spec in architecture.parameters() if spec.dead and spec.name.endswith("beta")}
    assert dead == {"level1.merge.norm.beta"}


@pytest.mark.parametrize("name", RECIPES)
def test_parameter_names_are_unique_and_a_recipe_survives_json(name):
    architecture = RECIPES[name]
    names = [spec.name for spec in architecture.parameters()]
    assert len(set(names)) == len(names)
    assert Hourglass.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize("levels, kernel", [(1, 3), (2, 5), (3, 7), (5, 3), (5, 1), (6, 5)])
def test_canvas_of_every_size_is_the_next_multiple_and_at_least_the_smallest(levels, kernel):
    architecture = Hourglass.regular(levels, kernel_down=kernel)
    step, least = 2**levels, {1: 2, 3: 2, 5: 3, 7: 4}[kernel] * 2**levels
    for size in range(1, 201):
        side, other = architecture.canvas(size, 1)
        assert (side % step, other) == (0, least)
        assert side >= max(size, least)
        assert side == least or side - size < step
        assert architecture.canvas(1, size) == (other, side)


@pytest.mark.parametrize("levels, kernel", [(1, 3), (1, 7), (2, 5), (3, 3), (4, 7), (5, 3), (6, 5)])
def test_the_deepest_level_can_be_padded_and_normalised_on_the_canvas_of_every_size(levels, kernel):
    thin = {"input_depth": 1, "channels": 1, "channels_skip": 1}
    architecture = Hourglass.regular(levels, **thin, kernel_down=kernel, kernel_up=7)
    network = HourglassNetwork.from_seed(architecture, 1)
    for canvas in sorted({architecture.canvas(size, 201 - size) for size in range(1, 201)}):
        with torch.no_grad():
            out = network(torch.rand(1, 1, *canvas))
        assert tuple(out.shape[2:]) == canvas
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("kernel, pixels", [(5, 2), (7, 3)])
def test_a_canvas_one_step_smaller_could_not_be_padded(kernel, pixels):
    architecture = Hourglass.regular(2, kernel_down=kernel)
    deepest = architecture.smallest_canvas // 4
    assert deepest == pixels + 1
    with pytest.raises(RuntimeError):
        torch.nn.functional.pad(torch.zeros(1, 1, deepest - 1, deepest - 1), (pixels,) * 4, mode="reflect")


@pytest.mark.parametrize(
    "settings",
    [
        {"channels_down": (8,) * 4},
        {"channels_down": ()},
        {"channels_skip": (-1,) * 5},
        {"channels_up": (0,) * 5},
        {"kernel_down": (4,) * 5},
        {"kernel_up": (9,) * 5},
        {"upsample": "nearest"},
        {"upsample": ("bicubic",) * 5},
        {"downsample": "max"},
        {"padding": "circular"},
        {"input_depth": 0},
        {"output_channels": True},
        {"input_depth": 2.5},
        {"negative_slope": 1.0},
        {"negative_slope": float("nan")},
        {"one_by_one_up": "yes"},
        {"levels": 0},
    ],
)
def test_what_is_no_network_is_refused_with_one_sentence(settings):
    with pytest.raises(InputError) as caught:
        Hourglass.regular(**settings) if "levels" in settings else Hourglass(**settings)
    assert str(caught.value).endswith(".")


def test_unknown_settings_and_kinds_in_a_file_are_refused():
    with pytest.raises(InputError, match="unknown setting 'colour'"):
        Hourglass.from_dict(Hourglass().to_dict() | {"colour": 1})
    with pytest.raises(InputError, match="'decoder'"):
        Hourglass.from_dict({"kind": "decoder"})
    with pytest.raises(InputError, match="height"):
        Hourglass().canvas(0, 5)


def test_architecture_codes_and_weights_are_made_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from dipengine.generators import Code, Hourglass, initial_parameters\n"
        "from dipengine.generators.authors import to_authors\n"
        "a = Hourglass.regular(2, channels=4)\n"
        "assert Code(depth=3).make(a.canvas(5, 7)).shape == (8, 8, 3)\n"
        "assert list(initial_parameters(a, 1)) == list(to_authors(a)) == [s.name for s in a.parameters()]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
