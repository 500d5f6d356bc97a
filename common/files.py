"""Files that are either the old one or the new one, whole, whenever the power goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_SUFFIX = ".part"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place when the block ends.

    The data is on the disk before the name is, and the name is before this returns: fsync of the file,
    rename, fsync of the folder. If the block raises, `path` is untouched and the temporary file is gone.

    Args:
        path: The file to make or replace; its folder exists.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` in one piece; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


def remove_partial_files(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder`. Call it as the folder's only writer."""
    for leftover in folder.glob(f".*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
