"""Options of tasks that name a file: which they are, and reading them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dipengine.images import MAX_PIXELS, Image, read_image, read_kernel, read_mask
from dipengine.tasks.base import Task

FILES = ("mask", "image", "kernel")  # kinds of options


def file_options(task: Task) -> list[str]:
    """The keywords of the options that name a file."""
    return [option.keyword for option in task.options if option.kind in FILES]


def read_kernels(task: Task, options: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """The options with blur kernels read; images and masks stay files, of which only parts are read at a time."""
    kernels = {option.keyword for option in task.options if option.kind == "kernel"}
    return {
        name: read_kernel(value, max_pixels=max_pixels) if name in kernels and value is not None else value
        for name, value in options.items()
    }


def read_files(
    task: Task,
    options: Mapping[str, Any],
    shape: tuple[int, int, int],
    *,
    max_pixels: int = MAX_PIXELS,
    image: Callable[[Any], Image] | None = None,
) -> dict[str, Any]:
    """The options with the files read that they name; a mask is turned already where --invert-mask says so.

    shape: (H, W, C) of the image that a mask is for. image: reads the images among them. Raises what the readers raise.
    """
    read = read_kernels(task, options, max_pixels=max_pixels)
    for option in task.options:
        path = read.get(option.keyword)
        if path is None:
            continue
        if option.kind == "image":
            read[option.keyword] = read_image(path, max_pixels=max_pixels) if image is None else image(path)
        elif option.kind == "mask":
            invert = bool(read.pop("invert_mask", False))
            read[option.keyword] = read_mask(path, shape, invert=invert, max_pixels=max_pixels)
    return read
