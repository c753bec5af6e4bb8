"""`dipengine export`: a kept generator as an ONNX file; and what `--export` of the tasks shares with it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dipengine.cli.reports import say
from dipengine.cli.side_files import check_side_file
from dipengine.errors import InputError

PRECISIONS = ("fp32", "fp16", "int8")


def add_parser(verbs: Any) -> None:
    text = "write a kept generator as one ONNX file, and verify what it paints"
    parser = verbs.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    add = parser.add_argument
    add("generator", metavar="GENERATOR.safetensors", type=Path, help="a file that --generator wrote")
    add("-o", "--output", metavar="OUT.onnx", type=Path, required=True)
    add("--precision", choices=PRECISIONS, default="fp32", help="of weights and activations (default: fp32)")
    add("--z", choices=("stored", "seed"), default="stored", help="seed: leave z out, hosts draw it (default: stored)")
    add("--enough", type=float, default=45.0, metavar="DB", help="PSNR against the delivered image at which consolidation ends (45)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    add("--quiet", action="store_true", help="no progress; errors and warnings are shown all the same")
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Export one generator; returns the exit status."""
    from dipengine.export.generator_file import FittedGenerator

    check_side_file(parsed.output, ".onnx")
    if parsed.threads is not None and parsed.threads < 1:
        raise InputError(f"threads is {parsed.threads}; ask for at least 1.")
    write(FittedGenerator.load(parsed.generator), parsed.output, precision=parsed.precision, z=parsed.z, enough=parsed.enough,
          threads=parsed.threads, quiet=parsed.quiet)
    return 0


def write(generator: Any, path: Path, *, quiet: bool, **options: Any) -> None:
    """Export with progress and a closing line on standard error."""
    from dipengine.export.consolidate import MOST_ITERATIONS
    from dipengine.export.exporter import export
    from dipengine.fitting.device import memory_errors
    from dipengine.fitting.progress import ProgressBar

    bar = nullcontext() if quiet else ProgressBar(MOST_ITERATIONS, "consolidate")
    with memory_errors(), bar as progress:
        done = export(generator, path, progress=progress, **options)
    if not quiet:
        size = f"{done.bytes / 1e6:.1f} MB" if done.bytes >= 1e5 else f"{done.bytes / 1e3:.0f} kB"
        say(f"{done.path}: {size}, {done.precision}, paints the delivered image with {done.psnr:.1f} dB "
            f"({done.consolidation_iterations} iterations of consolidation)")
    if done.warning:
        say(f"dipengine: {done.warning}")
