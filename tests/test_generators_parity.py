"""The generator against an independent network with the authors' names: same weights, outputs, gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from generator_parity import RECIPES, compare, narrowed, randomise
from plain_hourglass import plain_hourglass

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.generators.authors import export_authors_state_dict, load_authors_state_dict, to_authors
from dipengine.generators.hourglass import HourglassNetwork

LIMIT = 1e-9

# What no recipe has: mixed skips and kernels, and zero padding in front of both kinds of up convolution.
EXTRA = {
    "zero-mixed": Hourglass.regular(
        3, padding="zero", kernel_up=(5, 1, 3), kernel_down=(3, 5, 3), channels_skip=(0, 4, 0), downsample="average"
    ),
    "reflection-mixed": Hourglass.regular(
        3,
        kernel_up=(5, 1, 7),
        kernel_down=(7, 1, 5),
        channels_skip=(4, 0, 2),
        upsample=("bilinear", "nearest", "nearest"),
    ),
    "one-level": Hourglass.regular(1, negative_slope=0.0, one_by_one_up=False),
}
NARROW = {name: narrowed(architecture, 8) for name, architecture in (RECIPES | EXTRA).items()}


def check(architecture: Hourglass, seed: int) -> None:
    peer = plain_hourglass(architecture)
    randomise(peer, seed)
    height, width = architecture.canvas(1, architecture.smallest_canvas + 1)
    parity = compare(architecture, peer, height=height, width=width, sigmoid=False, seed=seed)
    assert parity.output < LIMIT
    assert parity.live < LIMIT, parity.worst
    # Exactly the parameters called dead have no gradient in a network that knows nothing of dead parameters.
    assert parity.dead < LIMIT
    assert parity.least_live > 1e-4
    assert parity.ours_dead_have_none


@pytest.mark.parametrize("name", NARROW)
def test_every_recipe_row_agrees_in_float64_with_few_channels(name):
    check(NARROW[name], seed=len(name))


@pytest.mark.parametrize("name", ["denoise", "text"])
def test_full_width_agrees_in_float64(name):
    check(RECIPES[name], seed=1)


def test_the_comparison_would_notice_a_wrong_upsampling():
    architecture = NARROW["denoise"]
    peer = plain_hourglass(replace(architecture, upsample=("nearest",) * 5))
    randomise(peer, 3)
    parity = compare(architecture, peer, height=64, width=64, sigmoid=False, seed=3)
    assert parity.output > 1e-6
    assert parity.live > 1e-6


@pytest.mark.parametrize("name", NARROW)
def test_names_cover_exactly_the_peers_parameters_with_their_shapes(name):
    architecture = NARROW[name]
    shapes = {theirs: tuple(p.shape) for theirs, p in plain_hourglass(architecture).named_parameters()}
    names = to_authors(architecture)
    assert {names[spec.name]: spec.shape for spec in architecture.parameters()} == shapes


@pytest.mark.parametrize("name", ["denoise", "hole-large", "zero-padding"])
def test_an_exported_state_dict_loads_strictly_and_comes_back_unchanged(name):
    architecture = NARROW[name]
    network = HourglassNetwork.from_seed(architecture, 6)
    peer = plain_hourglass(architecture)
    peer.load_state_dict(export_authors_state_dict(network), strict=True)
    z = torch.rand(1, architecture.input_depth, *architecture.canvas(1, 1), generator=torch.Generator().manual_seed(0))
    peer.double()
    with torch.no_grad():
        assert torch.allclose(network.double()(z.double()), peer(z.double()), rtol=1e-9, atol=1e-9)
    back = HourglassNetwork(architecture)
    load_authors_state_dict(back, export_authors_state_dict(HourglassNetwork.from_seed(architecture, 6)))
    for key, value in HourglassNetwork.from_seed(architecture, 6).state_dict().items():
        assert torch.equal(back.state_dict()[key], value)


def test_a_state_dict_of_another_architecture_is_refused():
    network = HourglassNetwork.from_seed(NARROW["denoise"], 0)
    state = export_authors_state_dict(network)
    before = network.numpy_parameters()
    missing = {k: v for k, v in state.items() if k != "9.1.weight"}
    for wrong, message in (
        (missing, "lacks '9.1.weight'"),
        (state | {"10.weight": torch.zeros(1)}, "holds '10.weight'"),
        (state | {"9.1.weight": torch.zeros(3, 9, 1, 1)}, "shape"),
    ):
        with pytest.raises(InputError, match=message):
            load_authors_state_dict(network, wrong)
    after = network.numpy_parameters()
    assert all((before[key] == after[key]).all() for key in before)
