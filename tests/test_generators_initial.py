"""Initial weights follow PyTorch's default distributions, from counters alone."""

from __future__ import annotations

import numpy as np
import torch

from dipengine.generators.architecture import Hourglass
from dipengine.generators.initial import initial_parameters, initial_tensor

SMALL = Hourglass.regular(2, input_depth=3, channels=(8, 12))


def test_shapes_types_gammas_and_betas_are_as_specified():
    drawn = initial_parameters(SMALL, 5)
    assert list(drawn) == [spec.name for spec in SMALL.parameters()]
    for spec in SMALL.parameters():
        assert drawn[spec.name].shape == spec.shape
        assert drawn[spec.name].dtype == np.float32
        if spec.name.endswith("gamma"):
            assert (drawn[spec.name] == 1).all()
        if spec.name.endswith("beta"):
            assert (drawn[spec.name] == 0).all()


def test_bounds_are_those_that_torch_draws_within():
    for enter, out, kernel in ((3, 400, 1), (8, 300, 3), (4, 200, 5)):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(enter, out, kernel)
        architecture = Hourglass.regular(1, input_depth=enter, channels=out, channels_skip=0, kernel_down=kernel)
        specs = {spec.name: spec for spec in architecture.parameters()}
        for leaf, tensor in (("weight", conv.weight), ("bias", conv.bias)):
            spec = specs[f"level0.down1.conv.{leaf}"]
            largest = tensor.abs().max().item()
            assert spec.shape == tuple(tensor.shape)
            assert 0.98 * spec.bound < largest <= spec.bound * (1 + 1e-6)


def test_weights_are_uniform_in_their_bounds():
    specs = {spec.name: (i, spec) for i, spec in enumerate(Hourglass().parameters())}
    position, spec = specs["level0.up.conv.weight"]
    sample = initial_tensor(spec, 3, position).astype(np.float64).ravel() / spec.bound
    n = sample.size
    assert np.abs(sample).max() <= 1
    assert abs(sample.mean()) < 5 * np.sqrt(1 / 3 / n)
    # The variance of a squared uniform on [-1, 1] is 1/5 - 1/9.
    assert abs((sample**2).mean() - 1 / 3) < 5 * np.sqrt((1 / 5 - 1 / 9) / n)
    counts, _ = np.histogram(sample, bins=64, range=(-1, 1))
    chi_squared = ((counts - n / 64) ** 2 / (n / 64)).sum()
    assert chi_squared < 63 + 5 * np.sqrt(2 * 63)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first, again, other = (initial_parameters(SMALL, seed) for seed in (7, 7, 2**64 - 1))
    for spec in SMALL.parameters():
        assert first[spec.name].tobytes() == again[spec.name].tobytes()
        if spec.initial == "uniform":
            assert first[spec.name].tobytes() != other[spec.name].tobytes()


def test_a_tensor_does_not_depend_on_what_was_drawn_before_it():
    together = initial_parameters(SMALL, 11)
    for position, spec in reversed(list(enumerate(SMALL.parameters()))):
        assert initial_tensor(spec, 11, position).tobytes() == together[spec.name].tobytes()


def test_tensors_of_one_shape_are_not_copies_of_each_other():
    drawn = initial_parameters(Hourglass.regular(3, channels=8), 2)
    first, second = drawn["level1.down1.conv.weight"].ravel(), drawn["level2.down1.conv.weight"].ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(first.size)
