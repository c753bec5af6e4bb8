"""`dipengine bench`: the engine measured beside plain PyTorch, in one run: an iteration of a fit, the painting of a generator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dipengine import environment
from dipengine.cli import arguments
from dipengine.cli.reports import say, tell
from dipengine.cli.side_files import check_side_file
from dipengine.kernels import backend

_PEERS = {
    "all": "every way of running it that is known to be fast",
    "eager": "eager float32 alone",
    "none": "the engine alone",
}


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("bench", help="measure the engine on this machine")
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    text = "an iteration of the paper's network beside the same in plain PyTorch, in turns in one run"
    iteration = subjects.add_parser("iteration", help=text, description=text[0].upper() + text[1:] + ".")
    add = iteration.add_argument
    add("--size", type=arguments.size, default=(256, 256), metavar="N|HxW", help="of the image, pixels (default: 256)")
    add("--upsample", choices=("nearest", "bilinear"), default="nearest", help="default: nearest")
    add("--precision", choices=("bf16", "fp32"), help="of the engine (default: bf16 where the hardware has it)")
    add("--threads", type=int, metavar="N", help="CPU threads of every side (default: all cores)")
    add("--rounds", type=int, default=5, metavar="N", help="turns of every side (default: 5)")
    add("--channels", type=arguments.integer_list, metavar="128[,...]", help="channels of the network")
    add("--skips", type=arguments.integer_list, metavar="4[,...]", help="channels of the skips (0: none)")
    add("--levels", type=int, default=5, metavar="5", help="number of scales of the network")
    peers = "; ".join(f"{name}: {what}" for name, what in _PEERS.items())
    add("--peers", choices=tuple(_PEERS), default="all", help=f"PyTorch's side. {peers} (default: all)")
    add("--layers", action="store_true", help="also each layer's time, floor and share of the iteration")
    add("--json", type=Path, metavar="FILE.json", help="write everything here: figures, raw samples, machine, versions")
    iteration.set_defaults(run=run_iteration)
    _add_render(subjects)


def _add_render(subjects: Any) -> None:
    text = "painting an exported generator beside a plain torch.onnx.export and PyTorch, in turns in one run"
    render = subjects.add_parser("render", help=text, description=text[0].upper() + text[1:] + ".")
    add = render.add_argument
    add("generator", nargs="?", metavar="GENERATOR.safetensors", type=Path,
        help="a file that --generator wrote (default: the paper's network with initial weights)")
    add("--size", type=arguments.size, default=(512, 512), metavar="N|HxW", help="of the image without a file, pixels (default: 512)")
    add("--upsample", choices=("nearest", "bilinear"), default="nearest", help="of the network without a file (default: nearest)")
    add("--channels", type=arguments.integer_list, metavar="128[,...]", help="channels of the network without a file")
    add("--levels", type=int, default=5, metavar="5", help="number of scales of the network without a file")
    add("--threads", type=int, metavar="N", help="CPU threads of every side (default: all cores)")
    add("--rounds", type=int, default=5, metavar="N", help="turns of every side (default: 5)")
    add("--peers", choices=("all", "none"), default="all", help="none: our own files alone (default: all)")
    add("--json", type=Path, metavar="FILE.json", help="write everything here: figures, raw samples, machine, versions")
    render.set_defaults(run=run_render)


def run_render(parsed: argparse.Namespace) -> int:
    """Measure, print the table and write the report; returns the exit status."""
    from dipengine.bench.rendering import measure, random_generator, table
    from dipengine.bench.setting import Setting
    from dipengine.export.generator_file import FittedGenerator
    from dipengine.fitting.device import memory_errors
    from dipengine.generators.architecture import Hourglass
    from dipengine.tasks.base import Recipe
    from dipengine.tasks.presets import apply_overrides

    check_side_file(parsed.json, ".json")
    threads = environment.default_threads() if parsed.threads is None else parsed.threads
    if parsed.generator is not None:
        generator = FittedGenerator.load(parsed.generator)
    else:
        base = Recipe(Hourglass.regular(upsample=parsed.upsample))
        network = apply_overrides(base, levels=parsed.levels, channels=parsed.channels).generator
        generator = random_generator(Setting(network, *parsed.size, "fp32", threads))
    with memory_errors():
        report = measure(generator, threads=threads, rounds=parsed.rounds, peers=parsed.peers == "all", say=_say, arguments=parsed.words)
    if parsed.json:
        from dipengine.images import write_json

        write_json(parsed.json, report)
    tell(table(report))
    return 0


def run_iteration(parsed: argparse.Namespace) -> int:
    """Measure, print the table and write the report; returns the exit status."""
    from dipengine.bench.iteration import measure
    from dipengine.bench.setting import Setting
    from dipengine.bench.table import table
    from dipengine.fitting.device import memory_errors
    from dipengine.generators.architecture import Hourglass
    from dipengine.tasks.base import Recipe
    from dipengine.tasks.presets import apply_overrides

    check_side_file(parsed.json, ".json")
    base = Recipe(Hourglass.regular(upsample=parsed.upsample))
    network = apply_overrides(base, levels=parsed.levels, channels=parsed.channels, skips=parsed.skips).generator
    precision = parsed.precision or ("bf16" if backend.bfloat16_pays() else "fp32")
    threads = environment.default_threads() if parsed.threads is None else parsed.threads
    setting = Setting(network, *parsed.size, precision, threads)
    with memory_errors():
        report = measure(setting, rounds=parsed.rounds, peers=parsed.peers, layers=parsed.layers, say=_say,
                         arguments=parsed.words)
    if parsed.json:
        from dipengine.images import write_json

        write_json(parsed.json, report)
    tell(table(report))
    return 0


def _say(text: str) -> None:
    say(f"dipengine: {text}")
