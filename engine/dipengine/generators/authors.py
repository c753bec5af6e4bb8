"""The authors' state-dict names for our parameters, and weights carried both ways.

Source: the `skip` network of github.com/DmitryUlyanov/deep-image-prior (models/skip.py, models/common.py).

Their network is nested `Sequential`s whose children are numbered from 1, except the list inside each convolution
block, numbered from 0. With P the prefix of a level ("" for level 0) and c the place of the convolution in its block
(1 with reflection padding, whose pad layer is child 0, for every kernel; 0 with zero padding):

    level with a skip branch              level without
    P1.0.1.c  P1.0.2    skip conv, norm
    P1.1.1.c  P1.1.2    down1             P1.1.c  P1.2
    P1.1.4.c  P1.1.5    down2             P1.4.c  P1.5
    P1.1.7.             prefix of level+1 P1.7.
    P2                  merge norm        P2
    P3.c  P4            up                P3.c  P4
    P6.c  P7            point             P6.c  P7       only with a 1x1 after each up convolution

The head is 9.c, or 6.c without the 1x1. Convolutions have `weight` and `bias`, norms `weight` (our gamma) and `bias`
(our beta). Their norms also hold running_mean, running_var and num_batches_tracked, which play no part: ignored on
load, written with their initial values on export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dipengine.errors import InputError
from dipengine.generators.architecture import Hourglass

if TYPE_CHECKING:
    from torch import Tensor

    from dipengine.generators.hourglass import HourglassNetwork

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
_LEAVES = {"conv.weight": "weight", "conv.bias": "bias", "norm.gamma": "weight", "norm.beta": "bias"}


def to_authors(architecture: Hourglass) -> dict[str, str]:
    """Our parameter name -> the authors' state-dict name, for every parameter, in our order."""
    places: dict[str, str] = {}
    place = "1" if architecture.padding == "reflection" else "0"

    def block(ours: str, theirs: str, number: int) -> None:
        places[f"{ours}.conv"] = f"{theirs}{number}.{place}"
        places[f"{ours}.norm"] = f"{theirs}{number + 1}"

    prefix = ""
    for i in range(architecture.levels):
        skip = architecture.channels_skip[i] > 0
        deeper = f"{prefix}1.1." if skip else f"{prefix}1."
        if skip:
            block(f"level{i}.skip", f"{prefix}1.0.", 1)
        block(f"level{i}.down1", deeper, 1)
        block(f"level{i}.down2", deeper, 4)
        places[f"level{i}.merge.norm"] = f"{prefix}2"
        block(f"level{i}.up", prefix, 3)
        block(f"level{i}.point", prefix, 6)
        prefix = f"{deeper}7."
    places["head.conv"] = f"{9 if architecture.one_by_one_up else 6}.{place}"

    names = {}
    for spec in architecture.parameters():
        module, kind, leaf = spec.name.rsplit(".", 2)
        names[spec.name] = f"{places[f'{module}.{kind}']}.{_LEAVES[f'{kind}.{leaf}']}"
    return names


def load_authors_state_dict(network: HourglassNetwork, state_dict: Mapping[str, Tensor]) -> None:
    """Fill the network from a state dict of the authors' network (tensors of any float dtype, on any device).

    Raises InputError if a parameter is missing, unknown or has another shape; running statistics are ignored.
    """
    names = to_authors(network.architecture)
    missing = [theirs for theirs in names.values() if theirs not in state_dict]
    if missing:
        raise InputError(f"The state dict lacks {missing[0]!r}; use the architecture that it was saved from.")
    known = set(names.values())
    unknown = [name for name in state_dict if name not in known and name.rsplit(".", 1)[-1] not in _RUNNING]
    if unknown:
        raise InputError(
            f"The state dict holds {unknown[0]!r}, which this architecture has not; use the one that it was saved from."
        )
    network.load_numpy({ours: _as_numpy(state_dict[theirs]) for ours, theirs in names.items()})


def export_authors_state_dict(network: HourglassNetwork) -> dict[str, Tensor]:
    """The network's parameters as a state dict that the authors' network loads strictly. Copies, on the CPU."""
    import torch

    arrays = network.numpy_parameters()
    exported: dict[str, Tensor] = {}
    for ours, theirs in to_authors(network.architecture).items():
        exported[theirs] = torch.from_numpy(arrays[ours])
        if ours.endswith("norm.beta"):
            norm = theirs.rsplit(".", 1)[0]
            exported[f"{norm}.running_mean"] = torch.zeros_like(exported[theirs])
            exported[f"{norm}.running_var"] = torch.ones_like(exported[theirs])
            exported[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return exported


def _as_numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    # NumPy has no bfloat16; half-precision values are exact in float32.
    return (tensor if tensor.element_size() >= 4 else tensor.float()).numpy()
