"""Files that survive a crash: private to their owner, on the disk before the call returns."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

PRIVATE = 0o600


def fsync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, so that a new or renamed file is found after a crash."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes) -> None:
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
    fsync_folder(path.parent)
