"""Types of command-line arguments: each turns text into a value or says in one sentence what is wrong."""

from __future__ import annotations

import argparse
import math
import re


def integer_list(text: str) -> tuple[int, ...]:
    """`128` or `16,32,64`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 128 or 16,32,64") from None


def mode_list(text: str) -> tuple[str, ...]:
    """`nearest`, `bilinear`, or one a level, separated by commas."""
    modes = tuple(text.split(","))
    if not set(modes) <= {"nearest", "bilinear"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not nearest or bilinear (or one a level, separated by commas)")
    return modes


def value_range(text: str) -> tuple[float, float]:
    """`lo,hi`: two finite numbers, the first the smaller."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 0,4095") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range: the first number must be below the second")
    return low, high


def region(text: str) -> tuple[int, int, int, int]:
    """`x,y,w,h`: pixels from the upper left corner, width and height."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a region such as 0,0,256,128 (x,y,width,height)") from None
    return x, y, width, height


def size(text: str) -> tuple[int, int]:
    """`256` or `256x384`: height and width in pixels."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256 or 256x384 (height x width)")
    return int(found[1]), int(found[2] or found[1])


def memory_size(text: str) -> int:
    """`8G`, `500M` or bytes; powers of 1024."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 8G or 500M")
    return int(float(found[1]) * 1024 ** ("KMGT".find(found[2].upper()) + 1 if found[2] else 0))
