"""The same frozen generator painted by others: PyTorch eager, and ONNX Runtime over a plain `torch.onnx.export`.

As a careful user would have them: weights and statistics those of our files, BatchNorm in evaluation mode with these statistics
(which the exporter and ONNX Runtime fold away), inference mode, z an input, so that nothing is folded into a stored picture. The
peers with "batch statistics" normalise by the statistics of their own activations instead, which is what the network does while it
is fitted; they paint the same picture and are slower.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dipengine.bench.peers import CHANNELS_LAST, CONTIGUOUS, PlainHourglass
from dipengine.errors import InputError
from dipengine.export.consolidate import Consolidated
from dipengine.export.generator_file import FittedGenerator
from dipengine.generators.architecture import NORM_EPSILON, Hourglass

EAGER = "eager float32"
EXPORT = "plain torch.onnx.export"


@dataclass(frozen=True)
class Way:
    """One way to run the network in PyTorch."""

    memory: torch.memory_format = CONTIGUOUS
    bf16: bool = False
    batch_statistics: bool = False


WAYS = {
    EAGER: Way(),
    "float32 channels_last": Way(CHANNELS_LAST),
    "bf16 channels_last": Way(CHANNELS_LAST, bf16=True),
    "eager float32, batch statistics": Way(batch_statistics=True),
}


def plain_network(generator: FittedGenerator, consolidated: Consolidated) -> torch.nn.Module:
    """z [1, depth, H, W] -> image [1, C, H, W] on the canvas. Raises InputError for a network that the peers have not."""
    a = generator.architecture
    if a.padding != "reflection" or not a.one_by_one_up or a.downsample != "stride":
        raise InputError("The plain network of the bench has reflection padding, 1x1 convolutions and strides; give another generator.")
    network = PlainHourglass(a)
    units = list(_units(a, 0))
    names = [f"{unit}.{leaf}" for unit in units for leaf in _leaves(unit)] + ["head.conv.weight", "head.conv.bias"]
    given, state = consolidated.parameters, list(network.parameters())
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, value in zip(names, state, strict=True):
            value.copy_(torch.from_numpy(np.array(given[name])))
        for unit, norm in zip(units, norms, strict=True):
            assert norm.eps == NORM_EPSILON
            # Our statistics are of convolutions without the bias that the norm cancels.
            bias = given.get(f"{unit}.conv.bias", 0.0)
            norm.running_mean.copy_(torch.from_numpy(np.array(consolidated.statistics[f"{unit}.norm.gamma"] + bias)))
            norm.running_var.copy_(torch.from_numpy(np.array(consolidated.statistics[f"{unit}.norm.beta"])))
    return torch.nn.Sequential(network, torch.nn.Sigmoid()).eval()


class EagerPainting:
    """The network in PyTorch, ready to paint."""

    def __init__(self, network: torch.nn.Module, z: np.ndarray, way: Way) -> None:
        self._way = way
        self._network = _copied(network).to(memory_format=way.memory)
        if way.batch_statistics:
            _batch_statistics(self._network)
        self._z = torch.from_numpy(z).contiguous(memory_format=way.memory)

    def paint(self) -> np.ndarray:
        """The image, float32 [1, C, H, W]."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._way.bf16):
            return self._network(self._z).float().numpy()


class ExportedPainting:
    """The network as torch.onnx.export writes it, in ONNX Runtime on the CPU."""

    def __init__(self, network: torch.nn.Module, z: np.ndarray, threads: int, *, batch_statistics: bool = False) -> None:
        import onnxruntime

        network = _copied(network)
        if batch_statistics:
            _batch_statistics(network)
        data = _exported(network, torch.from_numpy(z))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self.bytes = len(data)
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._z = {self._session.get_inputs()[0].name: z}

    def paint(self) -> np.ndarray:
        """The image, float32 [1, C, H, W]."""
        return self._session.run(None, self._z)[0]


def _exported(network: torch.nn.Module, z: torch.Tensor) -> bytes:
    """The model's bytes. Needs onnxscript, as PyTorch's exporter does."""
    import contextlib
    import warnings

    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(network, (z,), dynamo=True, verbose=False)
    return program.model_proto.SerializeToString()


def _copied(network: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(network)


def _batch_statistics(network: torch.nn.Module) -> None:
    """BatchNorm by the statistics of its own input, without keeping any."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def _units(a: Hourglass, i: int):
    """The units of the plain network in its order: the authors'."""
    prefix = f"level{i}"
    if a.channels_skip[i]:
        yield f"{prefix}.skip"
    yield from (f"{prefix}.down1", f"{prefix}.down2")
    if i + 1 < a.levels:
        yield from _units(a, i + 1)
    yield from (f"{prefix}.merge", f"{prefix}.up", f"{prefix}.point")


def _leaves(unit: str) -> tuple[str, ...]:
    norm = ("norm.gamma", "norm.beta")
    return norm if unit.endswith(".merge") else ("conv.weight", "conv.bias", *norm)
