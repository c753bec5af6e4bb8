"""The options by which a task is told of its noise, and what they come to: Gaussian of known sigma, or a counting sensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dipengine.errors import InputError
from dipengine.images.namespaces import cast, extremes, mean, namespace
from dipengine.noise.estimate import NoiseLevel, estimated_noise, estimated_noise_of_parts
from dipengine.noise.gaussian import STRONG_NOISE, checked_sigma
from dipengine.noise.sensor import Sensor
from dipengine.tasks.base import TaskData, TaskOption

NOISES = ("unknown", "gaussian", "poisson", "poisson-gaussian")
_NOISE_OVER_SPREAD = 10.0  # even two pixels scatter by more than a tenth of their noise as a rule
_DARK_REACH = 5.0  # read noises below the black level that no pixel reaches by chance

NOISE_OPTIONS = (
    TaskOption(
        "sigma",
        "standard deviation of Gaussian noise in the image's own units (0..255 for 8 bits, 0..65535 for 16 bits, "
        "data units for float)",
        float,
    ),
    TaskOption(
        "noise",
        "gaussian: sigma is estimated from the image where --sigma does not tell it; poisson (photons): needs --gain; "
        "poisson-gaussian (a sensor): needs --gain and --read-noise; unknown: nothing is told or estimated (default: gaussian where "
        "--sigma tells it or, in denoise, where the noise is found to be white, else unknown)",
        str,
        choices=NOISES,
    ),
    TaskOption("gain", "electrons per data unit (1 where the values are counts)", float),
    TaskOption("offset", "black level: the value of no light, in data units (0 where not given)", float),
    TaskOption("read-noise", "standard deviation of the noise without light, in data units", float),
)


def sensor_of(options: Mapping[str, Any]) -> Sensor | None:
    """The sensor that the options describe; None for Gaussian or unknown noise.

    Raises InputError for options that contradict each other or leave something out.
    """
    given = {name: options.get(name) for name in ("sigma", "noise", "gain", "offset", "read_noise")}
    noise = given["noise"]
    if noise is not None and noise not in NOISES:
        raise InputError(f"There is no noise {noise!r}; choose one of {', '.join(NOISES)}.")
    if noise in (None, "unknown", "gaussian"):
        for name in ("gain", "offset", "read_noise"):
            if given[name] is not None:
                raise InputError(
                    f"{_word(name)} describes a counting sensor; say so with noise poisson or poisson-gaussian, or leave it out."
                )
        if noise == "unknown" and given["sigma"] is not None:
            raise InputError("sigma tells the noise; leave out noise unknown, or sigma.")
        return None
    if given["sigma"] is not None:
        raise InputError(f"sigma is for gaussian noise; describe {noise} noise by gain, offset and read-noise.")
    if given["gain"] is None:
        raise InputError(f"{noise} noise needs gain, the electrons per data unit (1 where the values are counts).")
    if noise == "poisson":
        if given["read_noise"] is not None:
            raise InputError("poisson noise has no read-noise; choose poisson-gaussian, or leave it out.")
    elif given["read_noise"] is None:
        raise InputError("poisson-gaussian noise needs read-noise, its standard deviation in data units.")
    return Sensor(given["gain"], given["offset"] or 0.0, given["read_noise"] or 0.0)


def gaussian_of(
    data: TaskData, known: Any, sigma: float | None, noise: str | None, *, by_itself: bool = False
) -> tuple[float | None, dict[str, Any]]:
    """Standard deviation of Gaussian noise in [0, 1] units, told or estimated, None where noise is unknown; and what the record says.

    known: bool [H, W], or None for everywhere. by_itself: noise that nobody has told of is estimated, and taken where it is white and
    not strong: the variance of the outputs has a sharp minimum then, which comes so soon that the look-back of known noise behind it
    is long (bench/stopping.py). Raises InputError.
    """
    span = data.values.span
    estimated = sigma is None and _estimate(noise, by_itself, 1.0, lambda: estimated_noise(data.pixels, known))
    if estimated:
        sigma = float(f"{estimated * span:.4g}")
    unit = None if sigma is None else checked_sigma(sigma, span)
    return unit, {"noise": None if unit is None else "gaussian", "sigma": sigma, **({"sigma_estimated": True} if estimated else {})}


def with_noise_of_whole(
    shape: tuple[int, int], parts: Iterable[tuple[Any, Any, slice]], options: Mapping[str, Any], span: float, *, by_itself: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of an image's tiles, where nobody has told of the noise that of the whole; and what the record says of it.

    shape: (H, W). parts: as `Task.recipe_of_whole` takes them. span: of the value map. by_itself: as in `gaussian_of`.
    """
    noise = options.get("noise")
    if options.get("sigma") is not None or noise not in (None, "gaussian"):
        return dict(options), {}
    sigma = _estimate(noise, by_itself, span, lambda: estimated_noise_of_parts(shape, parts))
    if sigma is None:
        return {**options, "noise": "unknown"}, {}
    return {**options, "sigma": sigma}, {"sigma_estimated": True}


def _estimate(noise: str | None, by_itself: bool, span: float, estimated: Callable[[], NoiseLevel]) -> float | None:
    """The sigma to be taken where none is told: of noise that is called gaussian, whatever it looks like."""
    if noise == "gaussian":
        return estimated().sigma
    if noise is not None or not by_itself:
        return None
    try:
        level = estimated()
    except InputError:  # too small an image, say
        return None
    return level.sigma if level.white and level.sigma < STRONG_NOISE * span else None


def check_light(sensor: Sensor, pixels: Any, known: Any) -> None:
    """Refuse a black level that lies above most of the image, and noise that would have scattered it much further.

    pixels: [H, W, C] in data units; known: bool [H, W] or None. Single pixels may lie below the black level, as far as noise
    takes them. Raises InputError.
    """
    xp, values = namespace(pixels), cast(pixels if known is None else pixels[known], namespace(pixels).float64)
    darkest = sensor.offset - _DARK_REACH * sensor.read_noise
    (lowest, highest), dark = extremes(values), mean(cast(values < darkest, xp.float64))
    if dark > 0.5 or highest <= sensor.offset:
        raise InputError(
            f"Most of the image lies below the black level (offset {sensor.offset:g}, read-noise {sensor.read_noise:g}); "
            f"give them in the image's own units, which reach from {lowest:g} to {highest:g}."
        )
    spread = highest - lowest
    light = max(mean(values) - sensor.offset, 0.0)
    noise = math.sqrt(light / sensor.gain + sensor.read_noise * sensor.read_noise)
    if spread > 0 and noise > _NOISE_OVER_SPREAD * spread:
        raise InputError(
            f"gain {sensor.gain:g} and read-noise {sensor.read_noise:g} say that the values scatter by {noise:g}, but all of them "
            f"lie within {spread:g}; give gain in electrons per data unit and read-noise in data units."
        )


def _word(name: str) -> str:
    return name.replace("_", "-")
