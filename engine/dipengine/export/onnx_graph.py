"""The ONNX graph of a frozen generator: z in, image out, in operators that every runtime has (opset 17).

    inputs   z      [1, depth, H, W], H and W any multiples of 2^levels: uint8 (noise: z = k * scale), uint8/uint16 or float32
             crop   int64 [4]: top, left, bottom, right of the window of the canvas that is returned
    output   image  float32 [1, C, bottom - top, right - left] in [0, 1]

Both inputs have defaults, as initializers of the same name: a host gives none to paint the image, and others to paint a part of
it. Being inputs they are not constants, so no runtime folds the network into a stored picture. A file made with z="seed" has no
default z; the metadata says how to draw it.

A nearest "up" convolution (kernel 3) runs on the small tensor in phase form: its sources, the skip brought there by
SpaceToDepth, are extended by one pixel at each edge, one 2x2 convolution gives four outputs a pixel, DepthToSpace spreads
them (mode DCR), and one pixel is cut off at each edge: an output pair begins with the second phase of the pixel before. 16
products a pixel of the small tensor instead of 36. Extending the small tensor by its edge is what reflection is at full size: the reflected row -1
is row 1, the second row of the first pair. Bilinear ones, and larger kernels, go out as Resize and a plain convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dipengine.export.frozen import Folded
from dipengine.generators.architecture import Hourglass

OPSET = 17  # the core, which tells the shapes of these operators (csrc/rendering/steps.cpp), takes no other
IR_VERSION = 8


def phase_weight(weight: np.ndarray) -> np.ndarray:
    """Of a nearest x2 upsampling and a 3x3 convolution, the 2x2 convolution on the small tensor.

    weight: [out, in, 3, 3]. Returns [4 * out, in, 2, 2]: output channel (2 p + q) * out + o is pixel (2 i - 1 + p, 2 j - 1 + q)
    of the large image for the window of small pixels i - 1, i and j - 1, j (design 3.1 shifted by one pixel).
    """
    # Large pixel 2i - 1 (p = 0) sees large pixels 2i - 2, 2i - 1, 2i: twice the small pixel i - 1 (taps 0, 1), once i (tap 2).
    # Large pixel 2i (p = 1) sees 2i - 1, 2i, 2i + 1: once i - 1 (tap 0), twice i (taps 1, 2).
    place = np.zeros((2, 2, 3))
    place[0, 0, [0, 1]] = place[0, 1, 2] = place[1, 0, 0] = 1
    place[1, 1, [1, 2]] = 1
    out, enter = weight.shape[:2]
    phases = np.einsum("pat,qbu,oitu->pqoiab", place, place, weight.astype(np.float64))
    return phases.reshape(4 * out, enter, 2, 2).astype(np.float32)


def depth_phase_weight(weight: np.ndarray) -> np.ndarray:
    """Of a 3x3 convolution on a large image, the 2x2 convolution on the small one that SpaceToDepth makes of it.

    weight: [out, in, 3, 3]. Returns [4 * out, 4 * in, 2, 2]; input channel (2 r + s) * in + c is row r, column s of a 2x2 block
    of channel c (SpaceToDepth's order), output channels as in `phase_weight`.
    """
    # Window row a, block row r is large row 2(i - 1 + a) + r; output row 2i - 1 + p sees it through tap
    # 2(i - 1 + a) + r - (2i - 1 + p) + 1 = 2a + r - p.
    place = np.zeros((2, 2, 2, 3))
    for p in range(2):
        for a in range(2):
            for r in range(2):
                tap = 2 * a + r - p
                if 0 <= tap <= 2:
                    place[p, a, r, tap] = 1
    out, enter = weight.shape[:2]
    phases = np.einsum("part,qbsu,oitu->pqorsiab", place, place, weight.astype(np.float64))
    return phases.reshape(4 * out, 4 * enter, 2, 2).astype(np.float32)


class GraphWriter:
    """Nodes and initializers of one generator."""

    def __init__(self, architecture: Hourglass, folded: Mapping[str, Folded]) -> None:
        self.architecture = architecture
        self.folded = folded
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def network(self, z: str) -> str:
        """Nodes from z to the image on the whole canvas; the name of the latter."""
        head = self.folded["head"]
        skip, deep = self._below(0, z)
        if self._in_phases(0):
            # What follows mixes channels alone, pixel by pixel: it is done before the phases are spread, on which runtimes
            # spend a pass over memory, so that it is the image that is spread and not all channels.
            x = self._activation("level0.up", self._phases(0, skip, deep))
            if self.architecture.one_by_one_up:
                point = self.folded["level0.point"]
                x = self._activation("level0.point", self._per_phase("level0.point", x, point.weight, point.bias))
            x = self.node("Sigmoid", [self._per_phase("head", x, head.weight, head.bias)], "phases")
            return self._spread("canvas", x)
        x = self._above(0, self._up(0, skip, deep))
        logits = self._convolution("head", x, head.weight, head.bias)
        return self.node("Sigmoid", [logits], "canvas")

    def _level(self, i: int, x: str) -> str:
        skip, deep = self._below(i, x)
        return self._above(i, self._up(i, skip, deep))

    def _below(self, i: int, x: str) -> tuple[str | None, str]:
        """The skip of a level, and what it upsamples."""
        a, prefix = self.architecture, f"level{i}"
        skip = self._unit(f"{prefix}.skip", x) if a.channels_skip[i] else None
        deep = self._unit(f"{prefix}.down1", x, halve=True)
        deep = self._unit(f"{prefix}.down2", deep)
        if i + 1 < a.levels:
            deep = self._level(i + 1, deep)
        part, channels, name = self.folded[f"{prefix}.up"], a.channels_skip[i], f"{prefix}.up"
        if part.before is not None:
            # Zero padding lies behind the norm, so that the norm cannot be folded into what follows it.
            skip = skip and self._affine(f"{name}.skip", skip, part.before, slice(0, channels))
            deep = self._affine(f"{name}.deep", deep, part.before, slice(channels, None))
        return skip, deep

    def _above(self, i: int, y: str) -> str:
        return self._unit(f"level{i}.point", y) if self.architecture.one_by_one_up else y

    def _unit(self, name: str, x: str, halve: bool = False) -> str:
        part = self.folded[name]
        mean = halve and self.architecture.downsample == "average"
        y = self._convolution(name, x, part.weight, part.bias, stride=2 if halve and not mean else 1)
        if mean:
            y = self.node("AveragePool", [y], f"{name}.mean", kernel_shape=[2, 2], strides=[2, 2])
        return self._activation(name, y)

    def _activation(self, name: str, x: str) -> str:
        return self.node("LeakyRelu", [x], f"{name}.activation", alpha=self.architecture.negative_slope)

    def _in_phases(self, i: int) -> bool:
        return self.architecture.upsample[i] == "nearest" and self.architecture.kernel_up[i] == 3

    def _up(self, i: int, skip: str | None, deep: str) -> str:
        name = f"level{i}.up"
        part, channels = self.folded[name], self.architecture.channels_skip[i]
        if self._in_phases(i):
            y = self._spread(f"{name}.sum", self._phases(i, None, deep))
            if skip:
                # At full size: in phase form its weights would take seven times the room, for a gain at the outermost level alone.
                beside = self._convolution(f"{name}.skip", skip, part.weight[:, :channels], np.zeros_like(part.bias))
                y = self.node("Add", [beside, y], f"{name}.both")
            return self._activation(name, y)
        mode, coordinates = {"nearest": ("nearest", "asymmetric"), "bilinear": ("linear", "half_pixel")}[self.architecture.upsample[i]]
        scales = self.constant("twice", np.array([1, 1, 2, 2], np.float32))
        extra = {"nearest_mode": "floor"} if mode == "nearest" else {}
        deep = self.node("Resize", [deep, "", scales], f"{name}.resize", mode=mode, coordinate_transformation_mode=coordinates, **extra)
        x = self.node("Concat", [skip, deep], f"{name}.concat", axis=1) if skip else deep
        return self._activation(name, self._convolution(name, x, part.weight, part.bias))

    def _phases(self, i: int, skip: str | None, deep: str) -> str:
        """[1, 4 * out, h + 1, w + 1]: channel (2 p + q) * out + o is pixel (2 y - 1 + p, 2 x - 1 + q) of channel o."""
        name, channels = f"level{i}.up", self.architecture.channels_skip[i]
        part = self.folded[name]
        weights, x = [phase_weight(part.weight[:, channels:])], deep
        if skip:
            small = self.node("SpaceToDepth", [skip], f"{name}.blocks", blocksize=2)
            x = self.node("Concat", [small, deep], f"{name}.concat", axis=1)
            weights.insert(0, depth_phase_weight(part.weight[:, :channels]))
        mode = "edge" if self.architecture.padding == "reflection" else "constant"
        pads = self.constant("around1", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        x = self.node("Pad", [x, pads], f"{name}.pad", mode=mode)
        weight = self.constant(f"{name}.weight", np.concatenate(weights, axis=1))
        bias = self.constant(f"{name}.bias", np.tile(part.bias, 4))
        return self.node("Conv", [x, weight, bias], f"{name}.phases", kernel_shape=[2, 2])

    def _per_phase(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """A 1x1 convolution of each of the four phases."""
        inputs = [x, self.constant(f"{name}.weight", np.tile(weight, (4, 1, 1, 1))), self.constant(f"{name}.bias", np.tile(bias, 4))]
        return self.node("Conv", inputs, name, kernel_shape=[1, 1], group=4)

    def _spread(self, name: str, phases: str) -> str:
        x = self.node("DepthToSpace", [phases], f"{name}.spread", blocksize=2, mode="DCR")
        ends = [self.constant(key, np.array(value, np.int64)) for key, value in
                (("inner_starts", [1, 1]), ("inner_ends", [-1, -1]), ("inner_axes", [2, 3]))]
        return self.node("Slice", [x, *ends], name)

    def _affine(self, name: str, x: str, before: tuple[np.ndarray, np.ndarray], channels: slice) -> str:
        a, b = (self.constant(f"{name}.{key}", values[channels].reshape(1, -1, 1, 1)) for key, values in zip("ab", before))
        return self.node("Add", [self.node("Mul", [x, a], f"{name}.scaled"), b], f"{name}.normed")

    def _convolution(self, name: str, x: str, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> str:
        kernel, pads = weight.shape[-1], [0, 0, 0, 0]
        if kernel > 1 and self.architecture.padding == "reflection":
            around = kernel // 2
            extent = self.constant(f"around{around}", np.array([0, 0, around, around] * 2, np.int64))
            x = self.node("Pad", [x, extent], f"{name}.pad", mode="reflect")
        elif kernel > 1:
            pads = [kernel // 2] * 4
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node("Conv", inputs, name, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads)


def generator_model(
    architecture: Hourglass, folded: Mapping[str, Folded], *, code: np.ndarray, code_scale: float, store_code: bool,
    window: tuple[int, int, int, int], producer_version: str,
) -> onnx.ModelProto:
    """The model of a frozen generator.

    code: z [depth, H, W] in its stored dtype (uint8, uint16 or float32); times `code_scale` it is z. store_code: whether it
    travels as the input's default. window: top, left, bottom, right of the delivered image on the canvas.
    """
    writer = GraphWriter(architecture, folded)
    z = "z"
    if code.dtype != np.float32:
        scale = writer.constant("z.scale", np.array(code_scale, np.float32))
        z = writer.node("Mul", [writer.node("Cast", ["z"], "z.values", to=TensorProto.FLOAT), scale], "z.scaled")
    canvas = writer.network(z)
    first, last = (writer.constant(f"crop.{key}", np.array(ends, np.int64)) for key, ends in (("first", [0, 1]), ("last", [2, 3])))
    starts = writer.node("Gather", ["crop", first], "crop.starts")
    ends = writer.node("Gather", ["crop", last], "crop.ends")
    axes = writer.constant("crop.axes", np.array([2, 3], np.int64))
    writer.node("Slice", [canvas, starts, ends, axes], "image")
    writer.initializers["crop"] = numpy_helper.from_array(np.array(window, np.int64), "crop")
    if store_code:
        writer.initializers["z"] = numpy_helper.from_array(np.ascontiguousarray(code[None]), "z")
    inputs = [
        helper.make_tensor_value_info("z", helper.np_dtype_to_tensor_dtype(code.dtype), [1, code.shape[0], "H", "W"]),
        helper.make_tensor_value_info("crop", TensorProto.INT64, [4]),
    ]
    output = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, architecture.output_channels, "h", "w"])
    graph = helper.make_graph(writer.nodes, "dipengine", inputs, [output], list(writer.initializers.values()))
    model = helper.make_model(graph, producer_name="dipengine", producer_version=producer_version,
                              opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model
