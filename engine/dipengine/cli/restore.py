"""The verbs that restore one image: read, check everything that can fail early, fit, write beside and rename."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dipengine.cli import arguments, tiles
from dipengine.cli.reports import say
from dipengine.cli.side_files import check_side_file
from dipengine.errors import InputError
from dipengine.fitting.settings import PRECISIONS, STOPS, Settings
from dipengine.images import MAX_PIXELS
from dipengine.images.pages import file_and_page
from dipengine.tasks.base import Task, TaskOption
from dipengine.tasks.option_files import FILES, file_options, read_files
from dipengine.tasks.presets import PRESETS

_METAVARS = {**dict.fromkeys(FILES, "FILE"), int: "N", float: "X", str: "TEXT"}


def add_parser(verbs: Any, task: Task) -> None:
    """One verb: the task's own options, then the common ones."""
    parser = verbs.add_parser(task.name, help=task.summary, description=task.summary[0].upper() + task.summary[1:] + ".")
    parser.add_argument("input", metavar="IN", type=Path, help="PNG, JPEG, WebP, TIFF or FITS")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help="the format follows the ending")
    own = parser.add_argument_group(f"options of {task.name}")
    for option in task.options:
        add_task_option(own, option, required=option.required)
    fit = parser.add_argument_group("fit")
    add_fit_options(fit)
    tiles.add_option(fit)
    _add_file_options(parser.add_argument_group("files"))
    parser.set_defaults(run=lambda parsed: run(task, parsed))


def add_task_option(group: Any, option: TaskOption, *, required: bool) -> None:
    """One option of a task, as it declares it."""
    name = f"--{option.name}"
    if option.kind is bool:
        group.add_argument(name, action="store_true", help=option.help)
        return
    shown = option.help if option.default is None else f"{option.help} (default: {option.default})"
    group.add_argument(
        name,
        type=Path if option.kind in FILES else option.kind,
        default=option.default,
        choices=option.choices,
        required=required,
        metavar=None if option.choices else _METAVARS[option.kind],
        help=shown,
    )


def add_fit_options(fit: Any) -> None:
    """What every fit may be told, whatever the task."""
    presets = "; ".join(f"{name}: {preset.summary}" for name, preset in PRESETS.items())
    fit.add_argument("--preset", choices=tuple(PRESETS), default="balanced", help=f"{presets} (default: balanced)")
    fit.add_argument("--iterations", type=int, metavar="N", help="length of the fit, or its ceiling with --stop auto")
    fit.add_argument(
        "--stop", choices=STOPS,
        help="auto: where the outputs move least (ES-EMV), with noise known or estimated where the residual is the noise, inpainting "
        "(text, missing50) where the fit is nearest to pixels held out; "
        "fixed: after N iterations (default: as the preset says; flash: fixed)",
    )
    fit.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same bits (default: 0)")
    fit.add_argument("--device", default="auto", metavar="auto|cpu|cuda:0", help="default: auto")
    fit.add_argument("--precision", choices=PRECISIONS, default="auto", help="default: bf16 where the hardware has it")
    fit.add_argument("--kernels", choices=("auto", "native", "torch"), help="native: the C++ core; torch: plain PyTorch")
    fit.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    fit.add_argument("--upsample", type=arguments.mode_list, metavar="nearest|bilinear", help="upsampling in the decoder")
    fit.add_argument("--channels", type=arguments.integer_list, metavar="128[,...]", help="channels of the generator")
    fit.add_argument("--skips", type=arguments.integer_list, metavar="4[,...]", help="channels of the skips (0: none)")
    fit.add_argument("--levels", type=int, metavar="5", help="number of scales of the generator")
    fit.add_argument("--range", type=arguments.value_range, metavar="LO,HI", help="data values that map to 0 and 1")


def _add_file_options(files: Any) -> None:
    files.add_argument("--truth", type=Path, metavar="GT", help="the undamaged image: PSNR and SSIM are reported")
    files.add_argument("--record", type=Path, metavar="FILE.json", help="write every parameter and measurement here")
    files.add_argument("--generator", type=Path, metavar="FILE.safetensors", help="keep the fitted generator here")
    files.add_argument("--export", type=Path, metavar="FILE.onnx", help="write the generator as ONNX, to be painted by `render`")
    files.add_argument(
        "--init-from", type=Path, metavar="GENERATOR|CHECKPOINT",
        help="begin with the weights and z of another fit of the same network, such as that of the frame before",
    )
    files.add_argument(
        "--checkpoint", type=Path, metavar="FILE.safetensors",
        help="save the fit here as it goes; where the file is there, the same command goes on from it, with the same bits; removed "
        "when the output is written",
    )
    files.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="SECONDS", help="how often (default: 60)"
    )
    files.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="refuse larger images (200 million)")
    files.add_argument("--quiet", action="store_true", help="no progress; errors are shown all the same")


def run(task: Task, parsed: argparse.Namespace) -> int:
    """Restore one image; returns the exit status (130 when interrupted, with the output written)."""
    # Parsing has no need of these; a wrong word on the command line is answered at once.
    from dipengine.cli.main import INTERRUPTED
    from dipengine.cli import export
    from dipengine.export.exporter import require_onnx
    from dipengine.fitting.progress import ProgressBar
    from dipengine.fitting.warm_start import WarmStart
    from dipengine.images import check_writable, read_image, write_image, write_json
    from dipengine.restoration import begin_restoration, plan_restoration

    settings = settings_of(parsed)
    check_writable(parsed.output)
    if getattr(parsed, "invert_mask", False) and parsed.mask is None:
        raise InputError("--invert-mask turns a mask around, and there is none; give --mask, or leave it out.")
    endings = {".json": (parsed.record,), ".safetensors": (parsed.generator, parsed.checkpoint), ".onnx": (parsed.export,)}
    for ending, paths in endings.items():
        for path in paths:
            check_side_file(path, ending)
    if parsed.export:
        require_onnx()
    _check_distinct(task, parsed)
    in_tiles = tiles.run(task, parsed, settings)
    if in_tiles is not None:
        return in_tiles
    image = read_image(parsed.input, max_pixels=parsed.max_pixels)
    given = {option.keyword: getattr(parsed, option.keyword) for option in task.options}
    options = read_files(task, given, image.pixels.shape, max_pixels=parsed.max_pixels)
    truth = read_image(parsed.truth, max_pixels=parsed.max_pixels) if parsed.truth else None
    init = WarmStart.load(parsed.init_from) if parsed.init_from else None
    plan = plan_restoration(image, task.name, options, settings)
    problem = plan.problem
    keeps_alpha = image.alpha is not None and not problem.fills_alpha
    check_writable(parsed.output, image, alpha=keeps_alpha, scale=problem.scale)
    restoring = begin_restoration(image, task.name, options, settings, plan, truth=truth, init=init)
    keeper = None
    if parsed.checkpoint:
        keeper = restoring.keeper(parsed.checkpoint, parsed.checkpoint_every, say)
    bar = nullcontext() if parsed.quiet else ProgressBar(plan.recipe.iterations, task.name if init is None else f"{task.name} from {parsed.init_from.name}")
    with bar as progress:
        restored = restoring.complete(progress, keeper, keep_on_interrupt=True)
    write_image(parsed.output, restored.pixels, image, alpha=restored.alpha, scale=restored.scale)
    if parsed.generator:
        restored.generator.save(parsed.generator)
    if parsed.record:
        write_json(parsed.record, restored.record)
    interrupted = restored.record["stop_reason"] == "interrupted"
    if not parsed.quiet:
        say(_summary(parsed.output, restored.record))
        if interrupted and keeper is not None:
            say(f"The fit is kept in {parsed.checkpoint}: the same command goes on from there.")
    if parsed.export:
        try:
            export.write(restored.generator, parsed.export, threads=parsed.threads, quiet=parsed.quiet)
        except KeyboardInterrupt:
            say(f"dipengine: interrupted: {parsed.export} was not written, everything else was.")
            return INTERRUPTED
    if interrupted:
        return INTERRUPTED
    if keeper is not None:
        keeper.remove()
    return 0


def settings_of(parsed: argparse.Namespace) -> Settings:
    """The settings that `add_fit_options` asks for."""
    names = ("preset", "iterations", "stop", "seed", "device", "precision", "kernels", "threads", "upsample", "channels",
             "skips", "levels")
    return Settings(**{name: getattr(parsed, name) for name in names}, value_range=parsed.range)


def _check_distinct(task: Task, parsed: argparse.Namespace) -> None:
    """No output may be an input or another output: a run must never eat what it was given."""
    named = [getattr(parsed, name) for name in file_options(task)]
    inputs = [parsed.input, parsed.truth, parsed.init_from, *named]
    outputs = [parsed.output, parsed.record, parsed.generator, parsed.export, parsed.checkpoint]
    seen = {os.path.realpath(file_and_page(path)[0]) for path in inputs if path is not None}
    for path in outputs:
        if path is None:
            continue
        if os.path.realpath(path) in seen:
            raise InputError(f"{os.fspath(path)!r} is named twice; an output needs a path of its own.")
        seen.add(os.path.realpath(path))


def _summary(output: Path, record: dict[str, Any]) -> str:
    reasons = {
        "iterations": "all iterations run",
        "variance": "stopped where the outputs moved least",
        "discrepancy": "fitted down to the noise",
        "held-out": "stopped by pixels held out of the fit",
        "interrupted": "interrupted: the best so far was written",
        "callback": "stopped by the caller",
    }
    taken_up = "" if record["resumed_at"] is None else f" (taken up at {record['resumed_at']})"
    text = (
        f"{output}: {record['iterations']} iterations{taken_up} in {record['seconds']:.1f} s, "
        f"image of iteration {record['delivered_iteration']} ({reasons[record['stop_reason']]})"
    )
    text += tiles.estimated_noise(record)
    if record["init_from"] is not None:
        text += f", started from {record['init_from']['source']} (its iteration {record['init_from']['iteration']})"
    if record["psnr"] is not None:
        text += f", PSNR {record['psnr']:.2f} dB"
        if record["psnr_input"] is not None:
            text += f" (input {record['psnr_input']:.2f} dB)"
    return text
