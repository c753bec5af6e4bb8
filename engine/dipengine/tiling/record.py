"""The record of an image that was restored in tiles: that of one fit, and what was each tile's own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dipengine.images import RawPixels
from dipengine.tiling.plan import TiledPlan

_OF_EACH = ("iterations", "delivered_iteration", "stop_reason", "rollbacks", "seconds", "loss")


def tiled_record(tiled: TiledPlan, measured: Mapping[str, float | None]) -> dict[str, Any]:
    """JSON-able; the keys of `make_record` with `tiles` beside them. Iterations and seconds are sums over the tiles.

    measured: psnr_peak, psnr_input, psnr and ssim of the whole image, where the truth is known.
    """
    records = tiled.records()
    if not records:
        base: dict[str, Any] = {"task": tiled.task, "preset": tiled.settings.preset, "parameters": {}}
    else:
        base = dict(records[min(records)])
    reasons = {record["stop_reason"] for record in records.values()}
    iterations = sum(record["iterations"] for record in records.values())
    seconds = sum(record["seconds"] for record in records.values())
    parameters = {**base["parameters"], **tiled.parameters}
    own = [record["parameters"] for record in records.values()]
    if own:
        parameters["held_out_pixels"] = sum(one["held_out_pixels"] for one in own)
        if any(one["stop_rule"] != own[0]["stop_rule"] for one in own):
            parameters["stop_rule"] = None  # tiles with too few pixels to hold out have another
    if "jpeg" in parameters:
        parameters["jpeg"] = tiled.image.like.metadata.jpeg.to_dict()
    if "code" in parameters:
        parameters["code"] = {**parameters["code"], "seed": None}  # each tile has its own
    description = tiled.description()
    for index, entry in enumerate(description["each"]):
        entry.update({name: records[index][name] for name in _OF_EACH} if index in records else {})
    height, width, channels = tiled.image.like.pixels.shape
    base.update(
        parameters=parameters,
        input={
            "source": tiled.image.like.source or None,
            "sha256": tiled.image.like.sha256,
            "width": width,
            "height": height,
            "channels": channels,
            "dtype": str(tiled.image.like.dtype),
            "known_sha256": None if tiled.known is None else _packed_sha256(tiled.known),
        },
        value_map=tiled.values.to_dict(),
        tiles=description,
        iterations=iterations,
        delivered_iteration=None,
        stop_reason=reasons.pop() if len(reasons) == 1 else "mixed" if reasons else None,
        rollbacks=sum(record["rollbacks"] for record in records.values()),
        seconds=seconds,
        seconds_per_iteration=seconds / iterations if iterations else None,
        loss=None,
        seed=tiled.settings.seed,
        **{name: _finite(measured.get(name)) for name in ("psnr_peak", "psnr_input", "psnr", "ssim")},
    )
    if records:
        base["peak_memory_bytes"] = max(record["peak_memory_bytes"] or 0 for record in records.values()) or None
    return base


def _packed_sha256(known: RawPixels) -> str:
    """Of one bit a pixel, rows run together, as the record of one fit has it."""
    digest, rest = hashlib.sha256(), np.empty(0, bool)
    for rows in known.bands_of_rows():
        bits = np.concatenate([rest, known.read(rows).ravel().astype(bool)])
        whole = len(bits) // 8 * 8
        digest.update(np.packbits(bits[:whole]).tobytes())
        rest = bits[whole:]
    digest.update(np.packbits(rest).tobytes())
    return digest.hexdigest()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
