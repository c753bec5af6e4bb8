"""The recipe rows as architectures, and one comparison of a generator with a peer that has the authors' names."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dipengine.generators.architecture import Hourglass
from dipengine.generators.authors import load_authors_state_dict, to_authors
from dipengine.generators.hourglass import HourglassNetwork

_WIDENING = (16, 32, 64, 128, 128)

# One architecture for each row of the paper's recipes, and what none of them covers.
RECIPES: dict[str, Hourglass] = {
    "denoise": Hourglass.regular(),
    "jpeg": Hourglass.regular(input_depth=3, channels=(8, 16, 32, 64, 128), channels_skip=(0, 0, 0, 4, 4)),
    "superres": Hourglass.regular(),
    "text": Hourglass.regular(channels_skip=128, upsample="nearest"),
    "hole-vase": Hourglass.regular(input_depth=2, channels_skip=0, upsample="nearest"),
    "hole-large": Hourglass.regular(
        6,
        input_depth=1,
        channels=(*_WIDENING, 128),
        channels_skip=0,
        kernel_down=5,
        upsample="nearest",
        one_by_one_up=False,
    ),
    "missing50": Hourglass.regular(output_channels=1),
    "missing98": Hourglass.regular(channels=_WIDENING, channels_skip=0, downsample="average"),
    "flash": Hourglass.regular(input_depth=3, upsample=("nearest",) * 2 + ("bilinear",) * 3),
    "zero-padding": Hourglass.regular(padding="zero", upsample="nearest"),
}


def narrowed(architecture: Hourglass, cap: int) -> Hourglass:
    """The architecture with every channel count held to `cap`, for quick tests."""
    names = ("channels_down", "channels_up", "channels_skip")
    return replace(architecture, **{n: tuple(min(c, cap) for c in getattr(architecture, n)) for n in names})


def randomise(peer: nn.Module, seed: int) -> None:
    """Float64 weights as a run leaves them: gammas and betas off 1 and 0, where some gradients would nearly vanish."""
    generator = torch.Generator().manual_seed(seed)
    peer.double().train()
    with torch.no_grad():
        for module in peer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator, dtype=torch.float64))
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator, dtype=torch.float64))
            elif isinstance(module, nn.Conv2d):
                bound = (module.weight[0].numel()) ** -0.5
                for tensor in (module.weight, module.bias):
                    tensor.uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class Parity:
    """Largest relative differences of one comparison, all in float64.

    output and live: relative to the largest output, or to the largest gradient in the same layer. dead: the peer's
    own gradient of parameters that we call dead, likewise; least_live: the smallest of the others' largest gradients.
    """

    output: float
    live: float
    worst: str
    dead: float
    least_live: float
    ours_dead_have_none: bool


def compare(architecture: Hourglass, peer: nn.Module, *, height: int, width: int, sigmoid: bool, seed: int) -> Parity:
    """Carry the peer's weights over and compare the output and every gradient of a masked MSE at height x width.

    sigmoid: True if the peer ends in a sigmoid; otherwise it is applied to both outputs.
    """
    network = HourglassNetwork(architecture).double()
    load_authors_state_dict(network, peer.state_dict())
    generator = torch.Generator().manual_seed(seed)
    shape = (1, architecture.output_channels, height, width)
    z = 0.1 * torch.rand((1, architecture.input_depth, height, width), generator=generator, dtype=torch.float64)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(shape, generator=generator, dtype=torch.float64) > 0.3).double()

    ours = torch.sigmoid(network(z))
    theirs = peer(z) if sigmoid else torch.sigmoid(peer(z))
    for out in (ours, theirs):
        _masked_mse(out, target, mask).backward()

    names, theirs_by_name = to_authors(architecture), dict(peer.named_parameters())
    ours_by_name = dict(network.named_parameters())
    reference = {ours_name: theirs_by_name[name].grad for ours_name, name in names.items()}
    scale: dict[str, float] = {}
    for name, gradient in reference.items():
        layer = name.rsplit(".", 2)[0]
        scale[layer] = max(scale.get(layer, 0.0), gradient.abs().max().item())

    live, dead, nones = {}, {}, []
    least_live = float("inf")
    for spec in architecture.parameters():
        layer, gradient = scale[spec.name.rsplit(".", 2)[0]], ours_by_name[spec.name].grad
        if spec.dead:
            dead[spec.name] = reference[spec.name].abs().max().item() / layer
            nones.append(gradient is None)
        else:
            live[spec.name] = (gradient - reference[spec.name]).abs().max().item() / layer
            least_live = min(least_live, reference[spec.name].abs().max().item() / layer)
    worst = max(live, key=live.__getitem__)
    output = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    return Parity(output, live[worst], worst, max(dead.values()), least_live, all(nones))


def _masked_mse(out: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return (mask * (out - target)).square().mean()
