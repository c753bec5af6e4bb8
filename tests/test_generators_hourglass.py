"""The network as a module: parameters in and out, precisions, memory layout, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generator_parity import RECIPES, narrowed
from plain_hourglass import plain_hourglass

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass
from dipengine.generators.authors import export_authors_state_dict
from dipengine.generators.hourglass import HourglassNetwork
from dipengine.generators.initial import initial_parameters

SMALL = narrowed(RECIPES["denoise"], 16)


def code(architecture: Hourglass = SMALL) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.rand(1, architecture.input_depth, *architecture.canvas(1, 70), generator=generator)


def test_parameters_are_not_a_number_until_filled():
    assert all(torch.isnan(p).all() for p in HourglassNetwork(SMALL).parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_module_names_and_order_are_the_architectures(name):
    architecture = narrowed(RECIPES[name], 4)
    specs = architecture.parameters()
    network = HourglassNetwork(architecture)
    assert [n for n, _ in network.named_parameters()] == [spec.name for spec in specs]
    assert [n for n, _ in network.trainable()] == [spec.name for spec in specs if not spec.dead]
    assert list(network.state_dict()) == [spec.name for spec in specs]


def test_parameters_go_in_and_come_out_unchanged_in_every_layout_and_dtype():
    drawn = initial_parameters(SMALL, 3)
    network = HourglassNetwork.from_seed(SMALL, 3).to(memory_format=torch.channels_last)
    for name, array in network.numpy_parameters().items():
        assert array.flags.c_contiguous
        assert array.tobytes() == drawn[name].tobytes()
    double = network.double().numpy_parameters()
    assert all(array.dtype == np.float64 for array in double.values())
    network.load_numpy({name: array + 1e-12 for name, array in double.items()})
    assert all((network.numpy_parameters()[name] == array + 1e-12).all() for name, array in double.items())


def test_loading_does_not_share_memory_and_takes_read_only_arrays():
    drawn = initial_parameters(SMALL, 3)
    for array in drawn.values():
        array.flags.writeable = False
    network = HourglassNetwork(SMALL)
    network.load_numpy(drawn)
    with torch.no_grad():
        network.head.conv.weight.zero_()
    assert (drawn["head.conv.weight"] != 0).any()


def test_dead_parameters_have_no_gradient_and_no_influence():
    network = HourglassNetwork.from_seed(SMALL, 5).double()
    z = code().double()
    before = network(z)
    before.square().mean().backward()
    dead = {spec.name for spec in SMALL.parameters() if spec.dead}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (name in dead)
    generator = np.random.default_rng(0)
    moved = {n: a + generator.normal(size=a.shape) * (n in dead) for n, a in network.numpy_parameters().items()}
    network.load_numpy(moved)
    with torch.no_grad():
        assert torch.allclose(network(z), before, rtol=1e-9, atol=1e-9)


def test_eval_mode_uses_the_same_statistics_as_train_mode():
    network = HourglassNetwork.from_seed(SMALL, 5)
    with torch.no_grad():
        assert torch.equal(network.train()(code()), network.eval()(code()))


@pytest.mark.parametrize("name", ["denoise", "text", "missing98", "zero-padding"])
def test_bfloat16_errs_at_most_twice_as_much_as_plain_modules_do(name):
    architecture = narrowed(RECIPES[name], 16)
    ours, theirs = 0.0, 0.0
    for seed in range(8):
        network = HourglassNetwork.from_seed(architecture, seed)
        peer = plain_hourglass(architecture)
        peer.load_state_dict(export_authors_state_dict(network))
        z = code(architecture).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                logits, plain = network(z), peer(z)
            exact = network.double()(z.double())
        assert logits.dtype == torch.float32
        # The head is not rounded to bfloat16: most logits need more than its 8 bits.
        assert (logits.bfloat16().float() != logits).double().mean() > 0.9
        ours += ((logits - exact).square().mean() / exact.var()).item()
        theirs += ((plain - exact).square().mean() / exact.var()).item()
    assert ours**0.5 < 2 * theirs**0.5


def test_bfloat16_gives_float32_gradients_and_keeps_activations_narrow_and_channels_last():
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    network = HourglassNetwork.from_seed(SMALL, 2).to(memory_format=torch.channels_last)
    z = code().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = network(z)
    logits.square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for _, p in network.trainable())
    activations = [t for t in kept if t.dim() == 4 and t.shape[0] == 1 and t.shape[1] != SMALL.input_depth]
    assert len(activations) > 50
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in activations)
    # The one exception is the head's input.
    assert [t.shape for t in activations if t.dtype != torch.bfloat16] == [(1, 16, *z.shape[2:])]


def test_float32_follows_float64_in_both_layouts():
    exact = HourglassNetwork.from_seed(SMALL, 2).double()(code().double())
    network = HourglassNetwork.from_seed(SMALL, 2)
    last = HourglassNetwork.from_seed(SMALL, 2).to(memory_format=torch.channels_last)
    with torch.no_grad():
        plain, other = network(code()), last(code().contiguous(memory_format=torch.channels_last))
    assert (plain - exact).abs().max() < 1e-3 * exact.std()
    assert (other - exact).abs().max() < 1e-3 * exact.std()
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_wrong_weights_are_refused_before_anything_is_changed():
    network = HourglassNetwork.from_seed(SMALL, 1)
    good = network.numpy_parameters()
    for wrong, message in (
        ({k: v for k, v in good.items() if k != "head.conv.bias"}, "lack 'head.conv.bias'"),
        (good | {"level9.up.conv.weight": np.zeros(1)}, "hold 'level9"),
        (good | {"head.conv.bias": np.zeros(4, np.float32)}, "shape"),
    ):
        with pytest.raises(InputError, match=message):
            network.load_numpy({k: v * 0 for k, v in wrong.items()})
    assert all((network.numpy_parameters()[name] == good[name]).all() for name in good)


@pytest.mark.parametrize("shape", [(1, 32, 65, 64), (1, 32, 32, 64), (2, 32, 64, 64), (1, 3, 64, 64), (32, 64, 64)])
def test_a_code_off_the_canvas_is_refused_with_one_sentence(shape):
    with pytest.raises(InputError) as caught:
        HourglassNetwork.from_seed(SMALL, 1)(torch.zeros(shape))
    assert str(caught.value).endswith(".")
