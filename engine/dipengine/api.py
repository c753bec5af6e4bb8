"""The Python interface: one function a task, arrays in, arrays out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dipengine.errors import InputError
from dipengine.export.generator_file import FittedGenerator
from dipengine.fitting.checkpoint import DEFAULT_EVERY
from dipengine.fitting.device import cuda_devices
from dipengine.fitting.outcome import History
from dipengine.fitting.progress import ProgressCallback
from dipengine.fitting.settings import Settings
from dipengine.fitting.warm_start import WarmStart
from dipengine.images import Image, checked_kernel, from_array
from dipengine.images.atomic import check_target
from dipengine.images.arrays import with_alpha
from dipengine.images.namespaces import cast, device_of, dtype_name, extremes, moved, namespace
from dipengine.restoration import begin_restoration
from dipengine.tasks import task_named

if TYPE_CHECKING:
    from dipengine.export.exporter import Export


@dataclass(frozen=True)
class Result:
    """What a restoration returns."""

    image: Any  # the restored image: the input's library, dtype, device and axes
    history: History  # loss and output variance of each iteration, PSNR now and then where the truth was given
    generator: FittedGenerator  # the fitted network; `.save("x.safetensors")` keeps it
    record: dict[str, Any]  # every parameter and measurement (JSON-able)

    def __repr__(self) -> str:
        """One line: weights and pixels would fill a notebook."""
        size = "x".join(map(str, self.image.shape))
        psnr = "" if self.record["psnr"] is None else f", PSNR {self.record['psnr']:.2f} dB"
        return (f"<dipengine.Result of {self.record['task']}: {size} {dtype_name(self.image.dtype)}, image of iteration "
                f"{self.record['delivered_iteration']} of {self.record['iterations']}{psnr}>")

    def export(self, path: str | os.PathLike, **options: Any) -> Export:
        """Write the generator as an ONNX file that `dipengine.Renderer`, or any ONNX runtime, paints; verified by painting.

        options: precision "fp32", "fp16" or "int8"; z "stored" or "seed"; threads; others and errors as in
        `export.exporter.export`, which continues the fit for a while so that the network paints the delivered image.
        """
        from dipengine.export.exporter import export

        return export(self.generator, path, **options)


def restore(
    image: Any,
    task: str | None = None,
    *,
    axes: str | None = None,
    alpha: bool = False,
    truth: Any = None,
    progress: ProgressCallback | None = None,
    preset: str = "balanced",
    iterations: int | None = None,
    stop: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    kernels: str | None = None,
    threads: int | None = None,
    upsample: str | tuple[str, ...] | None = None,
    channels: int | tuple[int, ...] | None = None,
    skips: int | tuple[int, ...] | None = None,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = DEFAULT_EVERY,
    init_from: str | os.PathLike | Result | FittedGenerator | WarmStart | None = None,
    **options: Any,
) -> Result:
    """Restore `image` by fitting a generator to it alone.

    image: NumPy or torch array, or anything with `__dlpack__`: HxW or HxWxC (`axes="CHW"` for channels first). 8- and
        16-bit unsigned integers by their dtype's range, everything else, and 16 bits that stay below 2^14 (a camera's counts), in
        data units (mapped by the range of the known pixels; `value_range=(low, high)` overrides). NaN in floats, and what a
        NumPy masked array masks, is missing: left out of the fit, and filled in. A torch tensor or CuPy array on a GPU stays there
        from beginning to end where the fit runs on one; the record then has no sha256 of it, and `generator.delivered` lies there
        too.
    alpha: the last channel is transparency, not colour: it is returned as it came (enlarged with the image; opaque where
        inpainting took it for the mask).
    task: "denoise" (the default), "dejpeg", "superres", "inpaint", "flash" or "deblur"; `options` are the task's own (see
        the function of that name). "custom" (the default where an operator is given) undoes an operator of your own:
        operator: a callable that takes a torch tensor [1, C, H, W] in data units (float32, on the fit's device) and
            returns one [1, c, h, w] of the data's shape, differentiable; or an object whose `A` is one (a deepinv physics).
        output_shape: (H, W) or (H, W, C) of the restored image, by default the data's. Its range is `value_range`, by
            default the data's own. sigma, mask, invert_mask: as in `denoise`.
    truth: the undamaged image (its alpha, if any, unused), to be measured against; it never influences the result.
    progress: called after each iteration with a `Report`; a true return value stops the fit there.
    preset: "paper", "balanced" or "fast". iterations: fixed length, or the ceiling with stop="auto".
    stop: "auto" (ES-EMV; where the noise is known, or estimated, the discrepancy principle; inpainting of what is thin or scattered
        by pixels held out of the fit) or "fixed".
    seed: the same seed gives the same bits. device: "auto" (the GPU that the image is on, else the first, else the CPU), "cpu",
        "cuda:0".
    precision: "auto", "fp32", "bf16". kernels: "auto", "native", "torch". threads: of the CPU.
    checkpoint: a file that the fit is saved in every `checkpoint_every` seconds; where it is there, the same call goes on from
        it with the same bits (record["resumed_at"]), another one is refused. Removed when the result is returned.
    init_from: begin with the weights and the z of another fit of the same network, in place of random ones: a file that
        `generator.save` or `checkpoint` wrote, a Result, or its generator; record["init_from"] says so.
    upsample, channels, skips: one value, or one a level (outermost first); levels: number of scales.

    Returns a Result. Raises InputError (a ValueError) for unusable input or options, DeviceError where the device,
    precision or kernels asked for are not there, FitError for a fit that diverges, OutputError where
    no checkpoint can be put, DependencyError without PyTorch.
    """
    task = task or ("denoise" if options.get("operator") is None else "custom")
    device, stay = device_beside(image, str(device))  # torch.device, too
    source, back = from_array(image, axes=axes, alpha=alpha, stay=stay)
    task_options = checked_options(task, options, axes, source.pixels if stay else None)
    settings = Settings(
        preset=preset,
        iterations=iterations,
        stop=stop,
        seed=seed,
        device=device,
        precision=precision,
        kernels=kernels,
        threads=threads,
        upsample=_tuple(upsample),
        channels=_tuple(channels),
        skips=_tuple(skips),
        levels=levels,
        value_range=value_range,
    )
    truth_image = None if truth is None else _beside(truth, source.pixels if stay else None, axes=axes, alpha=alpha)
    if checkpoint is not None:
        check_target(checkpoint)
    restoring = begin_restoration(source, task, task_options, settings, truth=truth_image, init=warm_start(init_from))
    keeper = None if checkpoint is None else restoring.keeper(checkpoint, checkpoint_every, _warn)
    restored = restoring.complete(progress, keeper)
    if keeper is not None:
        keeper.remove()
    pixels = with_alpha(restored.pixels, restored.alpha) if alpha else restored.pixels
    return Result(back(pixels), restored.history, restored.generator, restored.record)


def denoise(
    image: Any,
    *,
    sigma: float | None = None,
    noise: str | None = None,
    gain: float | None = None,
    offset: float | None = None,
    read_noise: float | None = None,
    data_term: str | None = None,
    mask: Any = None,
    invert_mask: bool = False,
    **common: Any,
) -> Result:
    """Remove noise: unknown, or of a known kind.

    sigma: standard deviation of Gaussian noise in the image's own units.
    noise: "gaussian" (white; sigma is estimated where it is not told: `noise.estimate`), "poisson" (photons; with gain),
        "poisson-gaussian" (a sensor; with gain and read_noise), or "unknown". None: gaussian where sigma is given, and, but for the
        preset paper, where the noise is found to be white (record["parameters"]["sigma_estimated"]); else unknown.
    gain: electrons per data unit. offset: black level, data units (0). read_noise: standard deviation, data units.
    data_term: "likelihood" (the default) or "stabilised", for the last two. mask, invert_mask: as in `inpaint`; missing
    pixels are ignored and filled in. See `restore`.
    """
    return restore(
        image, "denoise", sigma=sigma, noise=noise, gain=gain, offset=offset, read_noise=read_noise,
        data_term=data_term, mask=mask, invert_mask=invert_mask, **common,
    )


def dejpeg(image: Any, *, known: str | None = None, **common: Any) -> Result:
    """Remove JPEG artefacts.

    image: uint8 as it was decoded, not cut or resized since: the steps by which it was coded are found in its pixels where they are
        those of a common quality. known: "keep" brings every coefficient near the multiple of its step that the JPEG held, "fit"
        leaves all as the generator paints it. See `restore`.
    """
    return restore(image, "dejpeg", known=known, **common)


def super_resolve(
    image: Any, factor: int, *, downsampler: str = "lanczos2", known: str | None = None, **common: Any
) -> Result:
    """Enlarge by `factor` 2, 3, 4 or 8.

    downsampler: the filter by which the small image came about. known: "keep" delivers an image that is `image` again when it is
        made small by that filter, "fit" what the generator paints, as noisy images want it. See `restore`.
    """
    return restore(image, "superres", factor=factor, downsampler=downsampler, known=known, **common)


def inpaint(
    image: Any,
    mask: Any = None,
    *,
    recipe: str = "missing50",
    invert_mask: bool = False,
    random_missing: float | None = None,
    known: str | None = None,
    **common: Any,
) -> Result:
    """Fill in missing pixels.

    mask: HxW array, non-zero (at least half of its largest value) where the pixel is known; `invert_mask` turns it.
        Without one, `alpha=True` takes the transparent pixels for missing. NaN and what a masked array masks is missing always.
    recipe: "text", "hole", "large-hole", "missing50", "missing98". random_missing: drop this fraction at random instead.
    known: "keep" returns known pixels as they came, "fit" as the generator paints them. See `restore`.
    """
    return restore(
        image, "inpaint", mask=mask, recipe=recipe, invert_mask=invert_mask, random_missing=random_missing,
        known=known, **common,
    )


def flash(image: Any, guide: Any, **common: Any) -> Result:
    """Clean `image`, taken without flash, by the help of `guide`, the same view taken with it (same size); see `restore`."""
    return restore(image, "flash", guide=guide, **common)


def deblur(
    image: Any,
    kernel: Any,
    *,
    sigma: float | None = None,
    noise: str | None = None,
    gain: float | None = None,
    offset: float | None = None,
    read_noise: float | None = None,
    mask: Any = None,
    invert_mask: bool = False,
    **common: Any,
) -> Result:
    """Undo the blur by `kernel`, a matrix of weights [kh, kw] (scaled to sum 1; its middle is [(kh-1)//2, (kw-1)//2]).

    What lies beyond the frame is unknown, not assumed. Noise and mask as in `denoise` (a sensor by its likelihood); see
    `restore`.
    """
    return restore(
        image, "deblur", kernel=kernel, sigma=sigma, noise=noise, gain=gain, offset=offset, read_noise=read_noise,
        mask=mask, invert_mask=invert_mask, **common,
    )


def warm_start(source: Any) -> WarmStart | None:
    """What `init_from` names. Raises InputError for what names nothing."""
    if source is None or isinstance(source, WarmStart):
        return source
    if isinstance(source, Result):
        source = source.generator
    if not isinstance(source, (FittedGenerator, str, os.PathLike)):
        raise InputError(f"init_from is a {type(source).__name__}; give a Result, its generator, or a file that `generator.save` or "
                         "`checkpoint` wrote.")
    return WarmStart.of_generator(source) if isinstance(source, FittedGenerator) else WarmStart.load(source)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)


def given_settings(options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The settings of a fit among keyword arguments (those of `restore`), and the others."""
    names = {field.name for field in fields(Settings)}
    given = {name: value for name, value in options.items() if name in names}
    for name in ("upsample", "channels", "skips"):
        given[name] = _tuple(given.get(name))
    return Settings(**given), {name: value for name, value in options.items() if name not in names}


def _tuple(value: Any) -> tuple | None:
    if value is None or isinstance(value, tuple):
        return value
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def device_beside(image: Any, device: str) -> tuple[str, bool]:
    """Where a fit of `image` runs that is to run on `device`, and whether the image stays where it is: on a GPU, beside its fit."""
    home = device_of(image)
    if home == "cpu" or device == "cpu" or home not in cuda_devices():
        return device, False
    return (home if device == "auto" else device), True


def _beside(array: Any, pixels: Any, axes: str | None = None, alpha: bool = False) -> Image:
    """The image in a second array, beside the first one's `pixels`; in CPU memory where those are None."""
    image = from_array(array, axes, alpha=alpha, stay=pixels is not None and device_of(array) != "cpu")[0]
    if pixels is None:
        return image
    planes = {name: None if (plane := getattr(image, name)) is None else moved(plane, pixels) for name in ("alpha", "known")}
    return replace(image, pixels=moved(image.pixels, pixels), **planes)


def checked_options(
    task: str, options: Mapping[str, Any], axes: str | None, pixels: Any = None
) -> dict[str, Any]:
    """The options given, checked against those that the task declares; arrays become what the task takes.

    pixels: of an image that stays on its device, where masks go too.
    """
    declared = {option.keyword: option for option in task_named(task).options}
    unknown = sorted(set(options) - set(declared))
    if unknown:
        raise InputError(
            f"{task} has no option {unknown[0]!r}; it takes {', '.join(declared) or 'none of its own'}."
        )
    missing = [name for name, option in declared.items() if option.required and options.get(name) is None]
    if missing:
        raise InputError(f"{task} needs {missing[0]}.")
    readers = {
        "mask": lambda mask: mask_from_array(mask, pixels), "kernel": kernel_from_array, "image": lambda guide: _guide(guide, axes)
    }
    if options.get("invert_mask") and options.get("mask") is None:
        raise InputError("invert_mask turns a mask around, and there is none; give mask, or leave invert_mask out.")
    checked = dict(options)
    for name, option in declared.items():
        if options.get(name) is None:
            continue
        if option.kind in readers:
            checked[name] = readers[option.kind](options[name])
        elif option.kind in (int, float):
            checked[name] = _number(name, options[name], option.kind)
    return checked


def _number(name: str, value: Any, kind: type) -> float | int:
    """A Python number from one of any library, so that records can be written. Raises InputError."""
    try:
        if isinstance(value, str) or kind(value) != value and value == value:
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} is {value!r}; give {wanted}.") from None


def _guide(guide: Any, axes: str | None) -> Image:
    """A second image, with the first one's order of axes where it has as many."""
    fits = axes is not None and len(axes) == len(getattr(guide, "shape", ()))
    with _named("guide"):
        return from_array(guide, axes if fits else None)[0]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors about "the image" speak of the array that they mean."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("The image", f"The {name}", 1)) from error


def kernel_from_array(kernel: Any) -> np.ndarray:
    """A blur kernel as float64 [kh, kw] of sum 1, from nested lists or any array. Raises InputError."""
    for move in ("detach", "cpu", "get"):  # torch with a gradient or on a GPU; CuPy
        if hasattr(kernel, move):
            kernel = getattr(kernel, move)()
    try:
        values = np.asarray(kernel)
    except (TypeError, ValueError) as error:
        raise InputError(f"The kernel is no matrix ({error}); give numbers, height x width.") from error
    return checked_kernel(values)


def mask_from_array(mask: Any, pixels: Any = None) -> Any:
    """A mask array as bool [H, W], True = known: values of at least half of the largest one. NumPy's, or beside `pixels`."""
    if "bool" in str(getattr(mask, "dtype", "")):
        mask = cast(mask, namespace(mask).uint8)
    with _named("mask"):
        image = _beside(mask, pixels)
    values = image.pixels
    if values.shape[2] != 1:
        raise InputError(f"The mask has {values.shape[2]} channels; give one value a pixel (HxW).")
    values = cast(values[:, :, 0], namespace(values).float64)
    _, top = extremes(values if image.known is None else values[image.known])
    white = values >= top / 2 if top > 0 else values > top
    return white if image.known is None else white & image.known
