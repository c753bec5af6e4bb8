"""Reading a generator's ONNX file: what it says of itself, its z, and whether it can be run safely here."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper, shape_inference

from dipengine import environment
from dipengine.errors import InputError
from dipengine.export.onnx_format import FORMAT, KEY
from dipengine.generators.architecture import Hourglass
from dipengine.generators.code import Code
from dipengine.images import ValueMap
from dipengine.noise.anscombe import Anscombe

MOST_BYTES = 1 << 31  # a protobuf holds no more


@dataclass(frozen=True)
class GeneratorModel:
    """A generator's ONNX model, checked: everything in the file, nothing outside it, of a size that fits."""

    data: bytes  # the model as ONNX Runtime takes it
    name: str  # for messages
    about: dict[str, Any]  # see export.onnx_format
    architecture: Hourglass
    values: ValueMap
    z: np.ndarray  # [depth, H, W] as the graph takes it

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, pixels."""
        return self.about["height"], self.about["width"]

    @property
    def origin(self) -> tuple[int, int]:
        """(top, left) of the image on the canvas."""
        return tuple(self.about["origin"])


def read_model(source: str | os.PathLike | bytes) -> GeneratorModel:
    """Read and check a file that `export` wrote. Raises InputError for any other: missing, foreign, truncated, with weights
    outside the file, or larger than this machine's memory."""
    name, data = _bytes(source)
    try:
        model = onnx.load_model_from_string(data)
        texts = {prop.key: prop.value for prop in model.metadata_props}
        if KEY not in texts:
            raise InputError(f"{name} is no generator of dipengine; give a file that `dipengine export` wrote.")
        _check_contents(name, model)
        onnx.checker.check_model(model)
        about = json.loads(texts[KEY])
        if about["format"] != FORMAT:
            raise InputError(f"{name} has format {about['format']} and this version reads {FORMAT}; use dipengine "
                             f"{about['version']}, which wrote it.")
        found = _from_parts(data, name, model, about)
    except InputError:
        raise
    except (DecodeError, onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise InputError(f"{name} cannot be read as an ONNX model; it may be truncated.") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name} is damaged as a generator ({error}); export it again.") from error
    return found


def _bytes(source: str | os.PathLike | bytes) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "the model", source
    name = os.fspath(source)
    try:
        if os.path.exists(source) and not os.path.isfile(source):
            raise InputError(f"{name} is no file that can be read at once (a folder, a pipe or a device); give a file.")
        size = os.path.getsize(source)
        if size > MOST_BYTES:
            raise InputError(f"{name} has {size} bytes; a generator's ONNX file has less than 2^31.")
        with open(source, "rb") as file:
            return name, file.read(MOST_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; check the path.") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}).") from error


def _from_parts(data: bytes, name: str, model: onnx.ModelProto, about: dict[str, Any]) -> GeneratorModel:
    architecture = Hourglass.from_dict(about["generator"])
    height, width = (int(side) for side in about["canvas"])
    (top, left), size = about["origin"], (about["height"], about["width"])
    if (height, width) != architecture.canvas(height, width):
        raise ValueError(f"{height}x{width} is no canvas")
    if not (0 <= top and 0 <= left and 0 < size[0] <= height - top and 0 < size[1] <= width - left):
        raise ValueError("the image does not lie on the canvas")
    check_memory(f"{name} needs", architecture.input_depth * height * width, "render it on a larger machine")
    _check_graph(name, model, about, architecture)
    stored = next((tensor for tensor in model.graph.initializer if tensor.name == "z"), None)
    return GeneratorModel(
        data, name, about, architecture, _values(about["values"]), _code(about, architecture, (height, width), stored),
    )


def _values(record: dict[str, Any]) -> ValueMap:
    curve = Anscombe.from_dict(record["curve"]) if record.get("curve") else None
    if "inverse" in record:
        if curve is None:
            raise ValueError("its values have an inverse without a curve")
        curve = curve.with_inverse(record["inverse"])
    values = ValueMap.from_dict(record, curve)
    start, end = values.fitted_range
    if not start < end:
        raise ValueError("its range of values is empty behind its curve")
    return values


def _code(about: dict[str, Any], architecture: Hourglass, canvas: tuple[int, int], stored: onnx.TensorProto | None) -> np.ndarray:
    shape = (architecture.input_depth, *canvas)
    if stored is not None:
        if tuple(stored.dims) != (1, *shape):
            raise ValueError(f"its z has shape {list(stored.dims)}")
        return numpy_helper.to_array(stored)[0]
    if about["z"] != "seed":
        raise ValueError("it lacks its z")
    code = Code.from_dict(about["code"])
    values = code.noise_bytes(canvas) if code.kind == "noise" else code.make(canvas)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def painting_bytes(a: Hourglass, height: int, width: int) -> int:
    """What a runtime holds at once to paint height x width pixels of a canvas: the outermost level's widest convolution, its
    input and its output in float32."""
    return 4 * height * width * 2 * max(*a.channels_up, *a.channels_down, a.input_depth)


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Raises InputError where this machine has less memory than `needed` bytes."""
    there = environment.memory()
    if there is not None and needed > there:
        raise InputError(f"{what} {needed / 2**30:.1f} GiB of memory and this machine has {there / 2**30:.1f}; {remedy}.")


def _check_contents(name: str, model: onnx.ModelProto) -> None:
    """Before anything else looks at it: no tensor outside the file, none where a generator has none, no operator that it has not."""
    graph = model.graph
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in graph.initializer):
        raise InputError(f"{name} keeps weights in another file, which dipengine never writes; export the generator again.")
    foreign = sorted({node.op_type for node in graph.node if node.op_type not in _OPERATORS or node.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise InputError(f"{name} is no generator of dipengine: it holds {foreign[0] if foreign else 'functions'}.")
    plain = {onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.FLOAT, onnx.AttributeProto.STRING}
    if graph.sparse_initializer or model.training_info or any(a.type not in plain for node in graph.node for a in node.attribute):
        raise InputError(f"{name} is no generator of dipengine: it keeps tensors in other places than its weights.")


def _check_graph(name: str, model: onnx.ModelProto, about: dict[str, Any], architecture: Hourglass) -> None:
    """Weights and steps as large as the architecture has them at most: a crafted file cannot ask for more than it is."""
    if {value.name for value in model.graph.input} != {"z", "crop"} or [value.name for value in model.graph.output] != ["image"]:
        raise InputError(f"{name} is no generator of dipengine: its inputs or outputs are others.")
    elements = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.name != "z")
    if elements > 4 * architecture.parameter_count + 4096:
        raise ValueError("its weights are more than its network has")
    if len(model.graph.node) > 80 * architecture.levels + 40:
        raise ValueError("its steps are more than its network has")
    height, width = about["canvas"]
    widest = max(*architecture.channels_up, *architecture.channels_down, *architecture.channels_skip, architecture.input_depth,
                 architecture.output_channels)
    most = 2 * widest * (height + 32) * (width + 32)
    inferred = shape_inference.infer_shapes(fixed_graph(model, about, architecture), data_prop=True)
    for value in inferred.graph.value_info:
        lengths = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if math.prod(lengths) > most:
            raise ValueError(f"its {value.name} is {'x'.join(map(str, lengths))}, more than its network has")
    known = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph.node:
        if not known.issuperset(node.output):
            raise ValueError(f"the shape of its {node.output[0]} cannot be told")


def fixed_graph(model: onnx.ModelProto, about: dict[str, Any], architecture: Hourglass) -> onnx.ModelProto:
    """A copy for the whole image alone: the window is a constant and all shapes are known; z stays an input, without a default, so
    that the network cannot be folded into a picture."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph, (top, left) = found.graph, about["origin"]
    height, width = about["height"], about["width"]
    for tensor in [tensor for tensor in graph.initializer if tensor.name in ("z", "crop")]:
        graph.initializer.remove(tensor)
    window = np.array([top, left, top + height, left + width], np.int64)
    graph.initializer.append(numpy_helper.from_array(window, "crop"))
    graph.input.remove(next(value for value in graph.input if value.name == "crop"))
    _set_shape(graph.input[0], (1, architecture.input_depth, *about["canvas"]))
    _set_shape(graph.output[0], (1, about["channels"], height, width))
    return found


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    value.type.tensor_type.shape.Clear()
    for length in shape:
        value.type.tensor_type.shape.dim.add(dim_value=length)


_OPERATORS = {
    "Add", "AveragePool", "Cast", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Gather", "LeakyRelu", "Mul", "Pad",
    "QuantizeLinear", "Resize", "Sigmoid", "Slice", "SpaceToDepth",
}
