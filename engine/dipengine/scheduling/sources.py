"""From what a user names (a folder, a glob, a manifest) to jobs, with every clash found before anything starts."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from dipengine.errors import InputError, OutputError
from dipengine.images.atomic import printable_name
from dipengine.images.formats import FORMATS, format_for
from dipengine.images.pages import file_and_page, page_name
from dipengine.images.raster_reading import pages_in
from dipengine.scheduling import manifest
from dipengine.scheduling.jobs import SETTINGS, Job, Request
from dipengine.tasks import task_named
from dipengine.tasks.option_files import FILES

WRITTEN = tuple(suffix for file_format in FORMATS for suffix in file_format.suffixes)
READ = (*WRITTEN, ".gif", ".heif", ".heic", ".avif", ".fits.fz")
_OF_PAGES = (".tif", ".tiff", ".gif", ".webp")  # kinds of which one file may hold several images
OWN_FOLDER = ".dipengine"  # the batch's own files, below its output folder
_LARGEST = 2.0**63  # of numbers in a manifest


def jobs_of(
    sources: str | Sequence[str], folder: Path, request: Request, ending: str | None = None, *, in_order: bool = False
) -> list[Job]:
    """The jobs that are named by folders (with those in them), glob patterns and images, or by one manifest. A file of several pages
    is a job a page.

    Outputs keep what comes behind a folder or behind a pattern's fixed part; of several sources, as a shell makes of a pattern, what
    comes behind the folder that all of them lie in.
    folder: where the outputs go; what lies in it is no input. request: what is asked, manifests override it row by row.
    in_order: every image begins with the weights of the one before it in its folder, every page with those of the page before it.
    ending: of all outputs, such as "png"; by default the input's own, but PNG for JPEG and for formats that are not written, FITS for
        tile-compressed FITS.

    Raises InputError: nothing found, a manifest that makes no sense, two inputs for one output, an output that is an input.
    """
    if ending is not None:
        ending = f".{ending.lower().lstrip('.')}"
        format_for(f"image{ending}")
    sources = [sources] if isinstance(sources, str) else list(sources)
    manifests = [source for source in sources if manifest.is_manifest(source)]
    if not manifests:
        jobs = [
            Job(os.path.abspath(page), _output(place, ending), request)
            for path, relative in _listed(sources, folder)
            for page, place in _pages(path, relative)
        ]
    elif len(sources) == 1:
        jobs = list(_from_manifest(Path(sources[0]), folder, request, ending))
        _check_some(jobs, sources[0])
    else:
        raise InputError(f"{manifests[0]!r} is a manifest; give it alone, or images, folders and patterns without it.")
    for asked in {id(job.request): job.request for job in jobs}.values():
        asked.check_complete()
    check_outputs(jobs, folder)
    return _chained(jobs) if in_order else jobs


def _chained(jobs: list[Job]) -> list[Job]:
    """Frames of one folder follow each other, and so do the pages of a file."""
    before: dict[str, str] = {}
    chained = []
    for job in jobs:
        file, page = file_and_page(job.input)
        place = os.path.dirname(file) if page is None else file
        chained.append(replace(job, after=before.get(place)))
        before[place] = job.output
    return chained


def side_outputs(output: str) -> tuple[str, str]:
    """The record's and the generator's path of an output."""
    return f"{output}.json", f"{output}.safetensors"


def check_outputs(jobs: Iterable[Job], folder: Path) -> None:
    """Raises InputError where two jobs would write one file, or one an input."""
    inputs: dict[str, str] = {}
    taken: dict[str, Job] = {}
    root = os.path.realpath(folder)
    real = _RealPaths()
    jobs = list(jobs)
    for job in jobs:
        for path in (job.input, *job.request.side_files()):
            inputs.setdefault(real.of(file_and_page(path)[0]), path)
    for job in jobs:
        record, generator = side_outputs(job.output)
        for output in (job.output, record, *([generator] if job.request.keep_generator else [])):
            place = real.of(os.path.join(root, output))
            if not place.startswith(root.rstrip(os.sep) + os.sep):
                raise InputError(f"The output {output!r} would leave {os.fspath(folder)!r}; outputs stay below it.")
            if place.startswith(os.path.join(root, OWN_FOLDER) + os.sep):
                raise InputError(f"The output {output!r} would lie among the batch's own files; choose another folder for it.")
            if place in inputs:
                raise InputError(f"{inputs[place]!r} is an input and would be overwritten as an output; choose another -o.")
            other = taken.setdefault(place, job)
            if other is not job:
                raise InputError(f"{other.input!r} and {job.input!r} would both be written as {output!r}; rename one, or name "
                                 f"the outputs in a manifest.")


class _RealPaths:
    """os.path.realpath of many files in a few folders."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def _listed(sources: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Paths with their outputs' place, in a natural order."""
    base = ""
    found: dict[str, None] = {}  # a file that two sources name is one image
    for source in sources:
        base, names = _found(source, folder)
        names = list(names)
        _check_some(names, source)
        found.update(dict.fromkeys(names))
    if len(sources) > 1:
        base = os.path.commonpath([os.path.dirname(os.path.abspath(source)) for source in sources])
    for name in sorted(found, key=_natural):
        if not printable_name(Path(name)):
            raise InputError(f"The name of {name!r} is not valid UTF-8, which no image library opens; rename the file.")
        yield name, PurePosixPath(os.path.relpath(name, base or ".")).as_posix()


def _pages(path: str, relative: str) -> Iterator[tuple[str, str]]:
    """An image, or the pages of a file that holds several, with their outputs' places."""
    named, page = file_and_page(path)
    if page is not None:
        yield path, _place_of_page(file_and_page(relative)[0], page)
        return
    pages = pages_in(named) if named.lower().endswith(_OF_PAGES) and os.path.isfile(named) else 1
    if pages == 1:
        yield path, relative
    for page in range(pages if pages > 1 else 0):
        yield page_name(path, page), _place_of_page(relative, page)


def _place_of_page(relative: str, page: int) -> str:
    """Numbers of four digits, so that a list of the outputs by name is in the order of the pages."""
    suffix = _suffix(relative)
    return f"{relative[: len(relative) - len(suffix)]}_p{page:04d}{suffix}"


def _check_some(found: Sequence[Any], source: str) -> None:
    if not found:
        raise InputError(f"There is no image in {source!r}; give a folder, a pattern such as 'scans/*.tif', or a manifest "
                         f"(.csv, .jsonl, .parquet).")


def _found(source: str, folder: Path) -> tuple[str, Iterable[str]]:
    """The folder that outputs are named from, and the images' paths."""
    if Path(source).is_dir():
        return source, _walk(source, os.path.realpath(folder))
    file = file_and_page(source)[0]
    if Path(file).is_file():
        if not _is_image(file):
            raise InputError(f"{source!r} is no image by its ending; images end in {', '.join(READ)}, manifests in "
                             f"{', '.join(manifest.ENDINGS)}.")
        return os.path.dirname(source), [source]
    base = _fixed_part(source)
    theirs = _Outputs(base)
    found = [
        name for name in glob.glob(source, recursive=True)
        if _is_image(name) and os.path.isfile(name) and os.path.dirname(name) not in theirs
    ]
    if not found and not glob.has_magic(source):
        raise InputError(f"There is no {source!r}; give a folder, a pattern such as 'scans/*.tif', or a manifest.")
    return base, found


def _walk(source: str, outputs: str) -> Iterator[str]:
    """All images but those in hidden folders, in the outputs' folder, and in those of other batches; links are followed, once."""

    def unreadable(error: OSError) -> None:
        raise InputError(f"The folder {error.filename!r} cannot be read ({error.strerror}); change its permissions or name others.")

    seen: set[str] = set()
    for place, folders, names in os.walk(source, followlinks=True, onerror=unreadable):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [
            name for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(place, name)) != outputs
            and not os.path.isdir(os.path.join(place, name, OWN_FOLDER))
        ]
        if here == outputs and os.path.isdir(os.path.join(place, OWN_FOLDER)):
            raise InputError(f"The outputs would lie among the inputs in {source!r}; give -o a folder of its own.")
        yield from (os.path.join(place, name) for name in names if _is_image(name) and not name.startswith("."))


class _Outputs:
    """The folders below `base` that hold what a batch has written: they, or one around them, have its own files in them."""

    def __init__(self, base: str) -> None:
        self._known = {os.path.normpath(base): False}

    def __contains__(self, folder: str) -> bool:
        folder = os.path.normpath(folder or ".")
        if folder not in self._known:
            above = os.path.dirname(folder) or "."
            self._known[folder] = os.path.isdir(os.path.join(folder, OWN_FOLDER)) or (above != folder and above in self)
        return self._known[folder]


def _is_image(name: str) -> bool:
    return name.lower().endswith(READ)


def _fixed_part(pattern: str) -> str:
    """The folder in front of a pattern's first wildcard: outputs keep what comes behind it."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return os.path.join(*parts[:fixed]) if fixed else "."


def _natural(name: str) -> list[tuple[int, int, str]]:
    """frame2 in front of frame10."""
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]


def _suffix(relative: str) -> str:
    path = PurePosixPath(relative)
    return next((s for s in sorted(READ, key=len, reverse=True) if path.name.lower().endswith(s)), path.suffix)


def _output(relative: str, ending: str | None) -> str:
    suffix = _suffix(relative)
    if ending is None:
        if suffix in WRITTEN and not any(f.name == "jpeg" and suffix in f.suffixes for f in FORMATS):
            return relative
        ending = ".fits" if suffix == ".fits.fz" else ".png"
    return relative[: len(relative) - len(suffix)] + ending


# ---- manifests ------------------------------------------------------------------------------------------------------


def _from_manifest(path: Path, folder: Path, request: Request, ending: str | None) -> Iterator[Job]:
    base = Path(os.path.realpath(path)).parent
    for number, row in manifest.rows(path):
        try:
            yield _job_of(row, base, request, ending)
        except (InputError, OutputError) as error:
            raise InputError(f"{path}, row {number}: {error}") from error


def _job_of(row: Mapping[str, Any], base: Path, request: Request, ending: str | None) -> Job:
    row = dict(row)
    source = row.pop("input", None)
    if source is None:
        raise InputError("There is no input; every row needs one.")
    source = _path(base, source)
    task = str(row.pop("task", request.task))
    output = row.pop("output", None)
    priority = _number("priority", row.pop("priority", 0), int)
    asked = _request_of(row, base, task, request)
    if output is None:
        file, page = file_and_page(source)
        relative = os.path.relpath(file, base)
        relative = relative if page is None else _place_of_page(relative, page)
        inside = not relative.startswith("..")
        output = _output(PurePosixPath(relative if inside else os.path.basename(relative)).as_posix(), ending)
    else:
        output = PurePosixPath(os.path.normpath(str(output))).as_posix()
        if os.path.isabs(output) or output.startswith(".."):
            raise InputError(f"The output {output!r} leaves the batch's folder; give a path below it.")
        format_for(output)
    return Job(source, output, asked, priority)


def _request_of(row: dict[str, Any], base: Path, task: str, request: Request) -> Request:
    described = task_named(task)
    if described.python_only:
        raise InputError(f"The task {task!r} takes a function, which a manifest cannot hold.")
    kinds = {option.keyword: option for option in described.options}
    # Options of the command line belong to its own task: another task's row starts from nothing.
    options = dict(request.options) if task == request.task else {}
    settings: dict[str, Any] = {}
    truth, tile = row.pop("truth", request.truth), str(row.pop("tile", request.tile))
    for name, value in row.items():
        keyword = name.replace("-", "_")
        if keyword in kinds:
            options[keyword] = _option(kinds[keyword], value, base)
        elif keyword == "range" or keyword in SETTINGS:
            settings["value_range" if keyword == "range" else keyword] = _setting(keyword, value)
        else:
            known = ("input", "output", "priority", "task", "truth", "tile", *kinds, *SETTINGS)
            raise InputError(f"There is no parameter {name!r} of {task}; columns are {', '.join(known)}.")
    asked = replace(
        request, task=task, options=options, settings=replace(request.settings, **settings), tile=tile,
        truth=None if truth is None else _path(base, truth),
    )
    return request if asked == request else asked  # one object for all such rows


def _option(option: Any, value: Any, base: Path) -> Any:
    if option.kind in FILES:
        return _path(base, value)
    if option.kind is bool:
        return _flag(option.keyword, value)
    value = _number(option.keyword, value, option.kind) if option.kind in (int, float) else str(value)
    if option.choices is not None and value not in option.choices:
        raise InputError(f"{option.keyword} is {value!r}; it takes {', '.join(map(str, option.choices))}.")
    return value


def _setting(name: str, value: Any) -> Any:
    if name in ("iterations", "seed", "levels"):
        return _number(name, value, int)
    if name in ("channels", "skips"):
        return tuple(_number(name, part, int) for part in _parts(value))
    if name == "upsample":
        modes = tuple(str(part) for part in _parts(value))
        if not set(modes) <= {"nearest", "bilinear"}:
            raise InputError(f"upsample is {value!r}; it takes nearest or bilinear, or one a level.")
        return modes
    if name in ("range", "value_range"):
        values = tuple(_number(name, part, float) for part in _parts(value))
        if len(values) != 2 or not values[0] < values[1]:
            raise InputError(f"{name} is {value!r}; give two numbers, the smaller one first.")
        return values
    return str(value)


def _parts(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else str(value).split(",")


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        number = kind(value)
        if isinstance(value, float) and number != value or not abs(number) < _LARGEST:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {value!r}; give a {'whole ' if kind is int else ''}number.") from None
    return number


def _path(base: Path, name: Any) -> str:
    """A path of the manifest, which may be relative to its folder."""
    text = os.fspath(base / str(name))
    if "\0" in text or not printable_name(Path(text)):
        raise InputError(f"{text!r} can be no file's name; correct it.")
    return text


def _flag(name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text in ("1", "true", "yes"):
        return True
    if text in ("0", "false", "no"):
        return False
    raise InputError(f"{name} is {value!r}; give true or false.")


