"""Manifests: tables of jobs, one row an image, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dipengine.errors import DependencyError, InputError

ENDINGS = (".csv", ".jsonl", ".ndjson", ".parquet")


def is_manifest(source: str) -> bool:
    """Whether a source names a manifest, by its ending."""
    return source.lower().endswith(ENDINGS)


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number of the row from 1, its named values); empty cells and nulls are left out. Raises InputError."""
    readers = {".csv": _csv, ".parquet": _parquet}
    try:
        for number, row in enumerate(readers.get(path.suffix.lower(), _jsonl)(path), 1):
            named = {str(name).strip(): value for name, value in row.items() if value is not None and value != ""}
            if named:
                yield number, named
    except OSError as error:
        raise InputError(f"The manifest {str(path)!r} cannot be read ({error.strerror or error}); check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The manifest {str(path)!r} is not in UTF-8 ({error.reason}); save it as UTF-8.") from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    # utf-8-sig: spreadsheets put a byte order mark in front.
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True)
        try:
            if table.fieldnames is None or "input" not in [name.strip() for name in table.fieldnames]:
                raise InputError(f"The manifest {str(path)!r} has no column 'input'; its first line names the columns.")
            for row in table:
                if None in row or None in row.values():
                    raise InputError(f"{path}, line {table.line_num}: the row has another number of cells than the first "
                                     f"line; quote cells that hold commas.")
                yield row
        except csv.Error as error:
            raise InputError(f"{path}, line {table.line_num}: this is no CSV ({error}).") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                yield {}
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number}: this is no JSON ({error}).") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: a row is an object such as {{\"input\": \"a.png\"}}.")
            yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DependencyError('Parquet manifests need pyarrow; install it with: pip install pyarrow, or give a CSV.') from error
    if not path.is_file():
        raise InputError(f"The manifest {str(path)!r} does not exist; check the path.")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise InputError(f"{path} is no Parquet file ({str(error).splitlines()[0]}).") from error
