"""One page of a file that holds several (stacks, time series, animations), by a name of its own: "stack.tif[page=3]", from 0 on.

libvips's own way to say it. Everything that takes the path of an image takes such a name.
"""

from __future__ import annotations

import os
import re

from dipengine.errors import ImageError

_NAMED = re.compile(r"(.+)\[page=(\d{1,9})\]", re.DOTALL)


def file_and_page(path: str | os.PathLike) -> tuple[str, int | None]:
    """The file, and the page that is meant; None where the name says none. A file that is called so is a file."""
    path = os.fspath(path)
    named = _NAMED.fullmatch(path)
    if named is None or os.path.exists(path):
        return path, None
    return named[1], int(named[2])


def page_name(path: str, page: int) -> str:
    """The name of a file's page."""
    return f"{path}[page={page}]"


def check_pages(source: str, pages: int, page: int | None) -> None:
    """Refuse a file of several pages or frames of which none is named, and a page that is not there. Raises ImageError."""
    if page is None and pages > 1:
        raise ImageError(f"{source} holds {pages} pages or frames; name one, as in '{page_name(source, 0)}' (dipengine batch SOURCE "
                         "takes all pages of a TIFF, GIF or WebP).")
    if page is not None and page >= pages:
        there = "one page, 0" if pages == 1 else f"pages 0 to {pages - 1}"
        raise ImageError(f"{source} has {there}, and no page {page}; name one that is there.")
