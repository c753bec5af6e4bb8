"""Every launch of one iteration of a network on the CUDA kernels, as the kernels' own code makes it, without a GPU.

The ops are called on the emulated device of tests/emulator, which notes each launch (kernel, grid, threads, shared memory) and
runs all blocks of a small one and a sample of a large one's, to count their products and the bytes that they ask for. What the last
block of a launch does, merging what the others left, is not counted.
Nothing here knows how a kernel is cut up; what it knows is the size of the arrays that each call is given.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p, sizeof
from dataclasses import dataclass, replace
from pathlib import Path

from cuda_compiler import short_name
from emulated import UPSAMPLE, Affine, ConvHead, ConvParams, ConvSource, Device, Pixels

from dipengine.bench.operations import Layer, Part, layers_of
from dipengine.generators.architecture import Hourglass

FLOAT32, BFLOAT16, UINT8 = 0, 1, 3
READ_MORE_THAN_ONCE = ("conv_forward", "conv_data_gradient", "conv_few_gradient", "conv_joint_gradients", "conv_weight_gradient",
                       "norm_statistics", "norm_backward", "conv_pack", "conv_bias_gradient")  # whose threads ask for some bytes several times
PACKS = ("pack", "pack data")  # steps
LEAST_FORMED, LEAST_JOINT, MOST_STORED = 256 * 256, 256 * 256, 512 * 512  # the variables of csrc/fit/graph.cpp
MOST_JOINT, MOST_HEADS = 128, 4  # DIPENGINE_CONV_CUDA_OVER_RAW and DIPENGINE_CONV_CUDA_HEAD


class NormParams(Structure):  # dipengine_norm_cuda_params
    _fields_ = [("struct_size", c_size_t), ("source_size", c_size_t), ("stream", c_void_p), ("workspace", c_void_p),
                ("workspace_bytes", c_size_t), ("fits", c_int64), ("active", c_void_p), ("numbers_fit_stride", c_int64),
                ("parameters_fit_stride", c_int64), ("source", POINTER(ConvSource)), ("dtype", c_int32), ("mean", c_void_p),
                ("variance", c_void_p), ("gamma", c_void_p), ("beta", c_void_p), ("eps", c_double), ("scale", c_void_p),
                ("shift", c_void_p), ("g", Pixels), ("g_fit_stride", c_int64), ("a", c_void_p), ("b", c_void_p), ("c", c_void_p), ("tickets", c_void_p)]


class NormGradient(Structure):  # dipengine_norm_cuda_gradient
    _fields_ = [("struct_size", c_size_t), ("stream", c_void_p), ("fits", c_int64), ("active", c_void_p), ("numbers_fit_stride", c_int64),
                ("parameters_fit_stride", c_int64), ("channels", c_int64), ("count", c_double), ("mean", c_void_p), ("variance", c_void_p),
                ("gamma", c_void_p), ("eps", c_double), ("sum", c_void_p), ("product", c_void_p), ("centred", c_int32), ("a", c_void_p),
                ("b", c_void_p), ("c", c_void_p), ("d_gamma", c_void_p), ("d_beta", c_void_p)]


class PerturbParams(Structure):  # dipengine_perturb_cuda_params
    _fields_ = [("struct_size", c_size_t), ("stream", c_void_p), ("fits", c_int64), ("count", c_int64), ("seeds", c_void_p),
                ("steps", c_void_p), ("active", c_void_p), ("noise_stream", c_uint32), ("z_dtype", c_int32), ("z", c_void_p),
                ("z_fit_stride", c_int64), ("z_scale", c_float), ("std", c_float), ("out_dtype", c_int32), ("out", c_void_p),
                ("out_fit_stride", c_int64), ("code_seeds", c_void_p), ("code_stream", c_uint32)]


class Image(Structure):
    _fields_ = [("data", c_void_p), ("fit_stride", c_int64), ("outer_stride", c_int64), ("row_stride", c_int64)]


class MaskedMseParams(Structure):  # dipengine_masked_mse_cuda_params
    _fields_ = [("struct_size", c_size_t), ("stream", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t), ("fits", c_int64),
                ("rows", c_int64), ("inner", c_int64), ("active", c_void_p), ("dtype", c_int32), ("activation", c_int32), ("raw", Image),
                ("target", Image), ("mask", Image), ("mask_repeat", c_int64), ("d_raw", Image), ("out", Image), ("average", Image),
                ("es_mean", Image), ("normaliser", c_void_p), ("grad_scale", c_double), ("average_decay", c_double), ("warm_up", c_int32),
                ("es_alpha", c_double), ("frames", c_void_p), ("loss", c_void_p), ("es_variance", c_void_p), ("sizes", c_void_p),
                ("tickets", c_void_p)]


class AdamSegment(Structure):
    _fields_ = [("param", c_void_p), ("grad", c_void_p), ("m", c_void_p), ("v", c_void_p), ("shadow", c_void_p), ("count", c_int64),
                ("fit_stride", c_int64)]


class AdamParams(Structure):  # dipengine_adam_cuda_params
    _fields_ = [("struct_size", c_size_t), ("segment_size", c_size_t), ("stream", c_void_p), ("grad_dtype", c_int32), ("fits", c_int64),
                ("segments_count", c_int64), ("segments", POINTER(AdamSegment)), ("steps", c_void_p), ("learning_rate", c_void_p),
                ("active", c_void_p), ("beta1", c_double), ("beta2", c_double), ("eps", c_double)]


@dataclass(frozen=True)
class Launch:
    """products: of the tensor cores, in the launch. asked, written: bytes that its threads load and store. arrays: bytes of what it
    reads, each array once."""

    layer: str
    step: str
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    products: int
    asked: int
    written: int
    arrays: int = 0

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


class SampledDevice(Device):
    """The emulated device; all pointers that ops are given are one large array, since no value matters."""

    def __init__(self, folder: Path, shared_limit: int, bytes_: int) -> None:
        super().__init__(folder)
        self.core.emulator_sample.argtypes, self.core.emulator_launches.restype = [c_size_t], ctypes.c_char_p
        self.core.emulator_sample(shared_limit)
        self.memory = self.empty(bytes_)
        self.pointer = self.memory.address
        listed = subprocess.run(["nm", self.core._name], capture_output=True, text=True, check=True).stdout
        symbols = {words[2]: int(words[0], 16) for words in map(str.split, listed.splitlines()) if len(words) == 3}
        base = ctypes.cast(self.core.emulator_sample, c_void_p).value - symbols["emulator_sample"]
        kernels = re.compile(r"_ZN9dipengine.*\d[a-z_]+_kernel")
        self.names = {base + address: short_name(symbol) for symbol, address in symbols.items() if kernels.match(symbol)}

    def launches(self, layer: str, step: str, name: str, params: Structure, *more: object) -> list[Launch]:
        self.call(name, byref(params), *more)
        found = []
        for line in self.core.emulator_launches().decode().splitlines():
            address, x, y, z, threads, shared, products, read, written = map(int, line.split())
            found.append(Launch(layer, step, self.names[address], (x, y, z), threads, shared, products, read, written))
        return found


def _once(launches: list[Launch], arrays: dict[str, int | list[int]]) -> Iterator[Launch]:
    """With the bytes of arrays by kernel, in turn where a kernel runs several times; others ask for each byte once."""
    turns = {name: list(sizes) if isinstance(sizes, list) else None for name, sizes in arrays.items()}
    before = None
    for launch in launches:
        name = launch.kernel.split("_kernel")[0]
        if name == "conv_weight_sum":  # raw taps that a phase's tap sums share its parts
            yield replace(launch, arrays=before.written)
        elif name in READ_MORE_THAN_ONCE:
            yield replace(launch, arrays=turns[name].pop(0) if turns[name] is not None else arrays[name])
        else:
            yield replace(launch, arrays=launch.asked)
        before = launch


class LayerLaunches:
    """The launches of a layer, forward and backward, with the folds that the fit gives it. `heads`: channels of the head behind a 1x1
    unit in front of it that has both gradients at once, 0 for others."""

    def __init__(self, device: SampledDevice, layer: Layer, dtype: int, large: bool = False, heads: int = 0) -> None:
        self.device, self.layer, self.dtype, self.bytes = device, layer, dtype, 4 if dtype == FLOAT32 else 2
        at = device.pointer
        self.gradient = NormGradient(struct_size=sizeof(NormGradient), fits=1, count=1, eps=1e-5)  # folded where it is summed
        for name in ("mean", "variance", "gamma", "a", "b", "c", "d_gamma", "d_beta"):
            setattr(self.gradient, name, at)
        self.merge = any(part.upsample != "none" for part in layer.parts)
        self.upsampled = next((i for i, part in enumerate(layer.parts) if part.upsample != "none"), -1)
        whole = all(channels % 8 == 0 and channels <= 1024 for channels in (layer.channels, layer.parts[self.upsampled].channels))
        self.forms = (self.merge and layer.parts[self.upsampled].upsample == "nearest" and dtype == BFLOAT16 and whole
                      and layer.pixels >= LEAST_FORMED)
        self.forms_again = large and layer.parts[self.upsampled].channels <= 4 * layer.channels  # the input, in its raw's place
        self.sources = (ConvSource * len(layer.parts))(*(self.source(part) for part in layer.parts))
        raw = dtype if layer.norm else FLOAT32
        self.raw_bytes = layer.pixels * layer.channels * (4 if raw == FLOAT32 else 2)
        pixels = Pixels(at, layer.width * layer.channels, layer.channels)
        self.params = ConvParams(
            struct_size=sizeof(ConvParams), source_size=sizeof(ConvSource), fits=1, sources=self.sources, sources_count=len(self.sources),
            dtype=dtype, raw_dtype=raw, kernel=layer.kernel, stride=layer.stride, pad=layer.kernel // 2, height=layer.height,
            width=layer.width, channels=layer.channels, weight=at, packed=at, packed_bytes=device.memory.bytes, workspace=at,
            workspace_bytes=device.memory.bytes, raw=pixels, eps=1e-5, gradient=pixels, gradient_dtype=raw, d_weight=at, tickets=at,
        )
        if layer.norm:
            for name in ("mean", "variance", "gamma", "beta", "scale", "shift", "gradient_scale", "raw_scale", "gradient_shift"):
                setattr(self.params, name, at)
        else:
            self.params.bias = self.params.d_bias = at
        self.heads = heads
        if heads and layer.norm:
            self.params.gradient, self.params.gradient_dtype = Pixels(at, layer.width * heads, heads), FLOAT32
            self.params.head = ConvHead(at, heads, 0.2, Affine(at, at))
        elif heads:  # the head itself, whose data gradient is nowhere
            self.sources[0].d_x = Pixels()

    def source(self, part: Part) -> ConvSource:
        at, fold = self.device.pointer, Affine(self.device.pointer, self.device.pointer)
        x = Pixels(at, part.width * part.channels, part.channels)
        source = ConvSource(part.height, part.width, part.channels, UPSAMPLE[part.upsample], x, 0, fold if part.raw else Affine(),
                            fold if self.merge else Affine(), 0.2 if part.raw else 1.0)
        if part.raw:
            source.d_x, source.sum, source.product, source.centre = x, at, at, at
            source.fold = ctypes.addressof(self.gradient)
            source.accumulate = int(self.layer.name.endswith("down1"))  # the skip's share is there already
        return source

    def image_bytes(self, part: Part) -> int:
        return part.height * part.width * part.channels * self.bytes

    def run(self, step: str, name: str, params: Structure, arrays: dict[str, int | list[int]], *more: object) -> list[Launch]:
        return list(_once(self.device.launches(self.layer.name, step, f"dipengine_{name}", params, *more), arrays))

    def formed(self, step: str, name: str, size: int, *more: object) -> list[Launch]:
        """An operand that is made beforehand, in place: any pointer will do."""
        (found,) = self.device.launches(self.layer.name, step, f"dipengine_conv_cuda_{name}_operand", self.params, *more)
        return [replace(found, arrays=size)]

    def with_formed_input(self) -> list[Affine]:
        """The upsampled part is read as it was formed; the folds that it had."""
        source = self.sources[self.upsampled]
        before = [Affine(of.scale, of.shift) for of in (source.inner, source.outer)]
        source.inner, source.outer, source.slope = Affine(), Affine(), 1.0
        return before

    def with_folds(self, before: list[Affine]) -> None:
        source = self.sources[self.upsampled]
        source.inner, source.outer, source.slope = *before, 0.2

    def norm(self, source: ConvSource) -> NormParams:
        at = self.device.pointer
        p = NormParams(struct_size=sizeof(NormParams), source_size=sizeof(ConvSource), fits=1, source=ctypes.pointer(source),
                       dtype=self.dtype, workspace=at, workspace_bytes=self.device.memory.bytes, eps=1e-5, g=source.d_x, tickets=at)
        for name in ("mean", "variance", "gamma", "beta", "scale", "shift", "a", "b", "c"):
            setattr(p, name, at)
        return p

    def forward(self) -> list[Launch]:
        found, images = [], [self.image_bytes(part) for part in self.layer.parts]
        if self.merge:
            for source, size in zip(self.sources, images, strict=True):
                found += self.run("merge", "norm_cuda_statistics", self.norm(source), {"norm_statistics": size})
        if self.forms:
            at = self.sources[self.upsampled].x
            found += self.formed("merge", "input", images[self.upsampled], c_int32(self.upsampled), at, c_int64(0))
        weight = 4 * self.layer.kernel**2 * sum(part.channels for part in self.layer.parts) * self.layer.channels
        packing = self.run(PACKS[0], "conv_cuda_pack", self.params, {"conv_pack": weight})
        packed = sum(launch.written for launch in packing)
        before = self.with_formed_input() if self.forms else None
        found += packing + self.run("forward", "conv_cuda_forward", self.params, {"conv_forward": sum(images) + packed})
        if before:
            self.with_folds(before)
        return found

    def joint_gradients(self) -> list[Launch]:
        layer, (part,) = self.layer, self.layer.parts
        read = self.image_bytes(part) + self.raw_bytes + 4 * (layer.pixels * self.heads + part.channels * layer.channels)
        found = self.run("both", "conv_cuda_joint_gradients", self.params, {"conv_joint_gradients": read})
        (summed,) = self.device.launches(layer.name, "both", "dipengine_conv_cuda_joint_weight_sum", self.params)
        return [*found, replace(summed, arrays=summed.asked)]

    def backward(self) -> list[Launch]:
        if self.heads and self.layer.norm:
            return self.joint_gradients()
        layer, found = self.layer, []
        d_raw = self.raw_bytes * (2 if layer.norm else 1)  # gradient and raw
        before = None
        if self.forms:
            found += self.formed("data", "gradient", d_raw, self.params.gradient, c_int64(0))
            self.params.gradient_scale = self.params.raw_scale = self.params.gradient_shift = None
            if self.forms_again:
                size, at = self.image_bytes(layer.parts[self.upsampled]), self.sources[self.upsampled].x
                found += self.formed("merge", "input", size, c_int32(self.upsampled), at, c_int64(0))
            d_raw, before = self.raw_bytes, self.with_formed_input()
        found += self.run("weights", "conv_cuda_weight_gradient", self.params, {
            "conv_weight_gradient": [self.image_bytes(part) + d_raw for part in layer.parts], "conv_bias_gradient": d_raw})
        old = 2 if layer.name.endswith("down1") else 1
        if before:
            self.with_folds(before)
        asked_for = [(Pixels.from_buffer_copy(source.d_x), source.sum, source.product) for source in self.sources]
        for i, (part, source) in enumerate(zip(layer.parts, self.sources, strict=True)):
            if not part.raw:
                continue
            for j, other in enumerate(self.sources):  # a launch of its own for each, as in the fit
                other.d_x, other.sum, other.product = asked_for[j] if j == i else (Pixels(), None, None)
            weight = 4 * layer.kernel**2 * part.channels * layer.channels
            packing = self.run(PACKS[1], "conv_cuda_data_pack", self.params, {"conv_pack": weight})
            read = d_raw + sum(launch.written for launch in packing) + old * self.image_bytes(part)
            found += packing + self.run("data", "conv_cuda_data_gradient", self.params,
                                        {"conv_data_gradient": read, "conv_few_gradient": read + weight})
        for source, own in zip(self.sources, asked_for, strict=True):
            source.d_x, source.sum, source.product = own
        if self.merge:
            for part, source in zip(layer.parts, self.sources, strict=True):
                read = (3 if source.accumulate else 2) * self.image_bytes(part)  # x, the gradient, and what is there already
                found += self.run("merge", "norm_cuda_backward", self.norm(source), {"norm_backward": read})
        return found


def packed_at_once(launches: list[Launch]) -> list[Launch]:
    """The same with the weights of all layers packed by two launches, one for each pass, as an iteration begins with them."""
    found = []
    for step in PACKS:
        packs = [launch for launch in launches if launch.step == step]
        total = {name: sum(getattr(launch, name) for launch in packs) for name in ("asked", "written", "arrays")}
        kernel, blocks = packs[0].kernel.replace("conv_pack", "conv_pack_all"), sum(launch.blocks for launch in packs)
        found.append(replace(packs[0], layer="all", kernel=kernel, grid=(blocks, 1, 1), **total))
    return found + [launch for launch in launches if launch.step not in PACKS]


def rest(device: SampledDevice, architecture: Hourglass, height: int, width: int, dtype: int) -> list[Launch]:
    """What is no layer's: the perturbed code, the loss and all that looks at the output, Adam."""
    at, depth, out = device.pointer, architecture.input_depth, architecture.output_channels
    count, row = height * width * depth, width * out
    perturb = PerturbParams(struct_size=sizeof(PerturbParams), fits=1, count=count, seeds=at, steps=at, z_dtype=UINT8, z_scale=0.1 / 255,
                            std=1 / 30, out_dtype=dtype, out=at, code_seeds=at)  # the code is made on the spot
    image = Image(at, height * row, height * row, row)
    mask = Image(at, height * width, height * width, width)
    mse = MaskedMseParams(
        struct_size=sizeof(MaskedMseParams), workspace=at, workspace_bytes=device.memory.bytes, fits=1, rows=height, inner=row,
        dtype=FLOAT32, activation=1, raw=image, target=image, mask=mask, mask_repeat=out, d_raw=image, average=image, es_mean=image,
        normaliser=at, grad_scale=1, average_decay=0.99, es_alpha=0.1, frames=at, loss=at, es_variance=at, tickets=at)
    specs = architecture.parameters()
    found = device.launches("code", "perturb", "dipengine_perturb_cuda", perturb)
    found += device.launches("loss", "loss", "dipengine_masked_mse_cuda", mse)
    for first in range(0, len(specs), 48):
        segments = [AdamSegment(at, at, at, at, None, spec.size, spec.size) for spec in specs[first : first + 48]]
        adam = AdamParams(struct_size=sizeof(AdamParams), segment_size=sizeof(AdamSegment), grad_dtype=FLOAT32, fits=1,
                          segments_count=len(segments), segments=(AdamSegment * len(segments))(*segments), steps=at, learning_rate=at,
                          beta1=0.9, beta2=0.999, eps=1e-8)
        found += device.launches("parameters", "adam", "dipengine_adam_cuda", adam)
    return list(_once(found, {}))


def iteration(device: SampledDevice, architecture: Hourglass, height: int, width: int, dtype: int) -> list[Launch]:
    """Every launch of an iteration, in the order of the layers: forward, then backward of each."""
    found, channels, heads = [], architecture.channels_up[0], architecture.output_channels
    joint = (dtype == BFLOAT16 and height * width >= LEAST_JOINT and architecture.one_by_one_up and channels % 8 == 0
             and channels <= MOST_JOINT and heads <= MOST_HEADS)
    for layer in layers_of(architecture, height, width):
        formed = heads if joint and layer.name in ("level0.point", "head") else 0
        launches = LayerLaunches(device, layer, dtype, height * width > MOST_STORED, formed)
        found += launches.forward() + launches.backward()
    return packed_at_once(found) + rest(device, architecture, height, width, dtype)
