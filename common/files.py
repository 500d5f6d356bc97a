"""Files that are either the old one or the new one, whole, whenever the power goes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

PRIVATE = 0o600
"""The mode of a file that its owner alone may read."""

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
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path` in one piece; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


def remove_partial_files(folder: Path) -> None:
    """Remove what writers that were killed have left in `folder`. Call it as the folder's only writer."""
    for leftover in folder.glob(f".*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file as a whole, mode 0600: afterwards it holds the old content or all of the new.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old file is untouched.
    """
    # A temporary file of mkstemp is 0600 from its first byte on.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync(path.parent)


def write_once(path: Path, text: str) -> str:
    """Make a file with `text` unless it is there already, and return what it holds.

    Several processes may call it at once: one of them makes the file, and all get its content.

    Args:
        path: The file; its folder is made, with mode 0700, where it is absent.
        text: A short text.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        partial = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
        partial.write_text(text, encoding="utf-8")
        sync(partial)
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink(missing_ok=True)
        sync(path.parent)
    return path.read_text(encoding="utf-8")
