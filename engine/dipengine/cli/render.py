"""`dipengine render`: paint a generator from its ONNX file."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from dipengine.cli import arguments
from dipengine.cli.reports import say
from dipengine.errors import InputError


def add_parser(verbs: Any) -> None:
    text = "paint an exported generator with ONNX Runtime: no fitting, no PyTorch"
    parser = verbs.add_parser("render", help=text, description=text[0].upper() + text[1:] + ".")
    add = parser.add_argument
    add("model", metavar="GENERATOR.onnx", type=Path, help="a file that `dipengine export` wrote")
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="the format follows the ending")
    add("--provider", choices=("auto", "cpu", "cuda", "tensorrt"), default="auto", help="of ONNX Runtime (default: auto)")
    add("--strict", action="store_true", help="fail where the runtime falls back to another provider")
    add("--region", type=arguments.region, metavar="X,Y,W,H", help="paint this part alone, pixels from the upper left corner")
    add("--tile", type=int, metavar="T", help="paint by tiles of T x T pixels: less memory, same pixels")
    add("--repeat", type=int, default=1, metavar="N", help="paint N times and tell the median time (default: 1)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    add("--quiet", action="store_true", help="errors and warnings alone")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Paint one image; returns the exit status."""
    from dipengine.fitting.device import memory_errors
    from dipengine.images import Image, check_writable, write_image
    from dipengine.rendering.renderer import Renderer

    for name in ("repeat", "threads"):
        value = getattr(parsed, name)
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; ask for at least 1.")
    if os.path.realpath(parsed.output) == os.path.realpath(parsed.model):
        raise InputError(f"{str(parsed.output)!r} is named twice; an output needs a path of its own.")
    check_writable(parsed.output)
    with memory_errors():
        start = time.perf_counter()
        renderer = Renderer(parsed.model, provider=parsed.provider, strict=parsed.strict, threads=parsed.threads)
        opened = time.perf_counter() - start
        if renderer.notice:
            say(f"dipengine: {renderer.notice}")
        taken = []
        for _ in range(parsed.repeat):
            start = time.perf_counter()
            pixels = renderer.image(parsed.region, tile=parsed.tile)
            taken.append(time.perf_counter() - start)
    like = Image(pixels)
    check_writable(parsed.output, like)
    write_image(parsed.output, pixels, like)
    if not parsed.quiet:
        times = f"{1e3 * statistics.median(taken):.1f} ms" + (f" (median of {parsed.repeat})" if parsed.repeat > 1 else "")
        say(f"{parsed.output}: {pixels.shape[1]}x{pixels.shape[0]} painted in {times} on {renderer.provider}, "
            f"opened in {1e3 * opened:.0f} ms")
    return 0
