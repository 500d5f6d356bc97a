"""UTF-8 files of records, line by line, with errors that say where the bytes are wrong and what to do."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from common.errors import DataError

_WIDE_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yield `(line number, line)` without line ends; a line ends with `\n` or `\r\n` and nothing else.

    A byte order mark of UTF-8 is dropped. Only one line is in memory at a time.

    Raises:
        DataError: The file cannot be opened, is empty, or a line is not UTF-8.
    """
    offset, seen_wide = 0, False
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                start = 0 if number > 1 else _mark_length(raw, path)
                line = _decode(raw[start:], path, number, offset + start, seen_wide)
                seen_wide = seen_wide or not line.isascii()
                offset += len(raw)
                yield number, line.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path) from error
    if offset == 0:
        raise DataError("is empty; leave the file out or put records into it.", path=path)


def read_text(path: Path) -> str:
    r"""Return a whole file exactly as it is, with its `\r` and its byte order mark: offsets count them.

    Raises:
        DataError: The file cannot be opened, is empty, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path) from error
    if not raw:
        raise DataError("is empty; leave the file out or put a record into it.", path=path)
    _mark_length(raw, path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        raise _not_utf8(path, line, error.start, raw[error.start], not before.isascii()) from None


def _mark_length(raw: bytes, path: Path) -> int:
    """Return the length of a UTF-8 byte order mark; refuse those of wider encodings."""
    for mark, name in _WIDE_MARKS.items():
        if raw.startswith(mark):
            raise DataError(
                f"is {name}; records must be UTF-8. Convert it, e.g. `iconv -f {name} -t UTF-8`.",
                path=path,
                line=1,
            )
    return len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0


def _decode(raw: bytes, path: Path, line: int, offset: int, seen_wide: bool) -> str:
    """Return one line as text."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        mixed = seen_wide or not raw[: error.start].isascii()
        # The decoder's own error carries the line, which is clinical text.
        raise _not_utf8(path, line, offset + error.start, raw[error.start], mixed) from None


def _not_utf8(path: Path, line: int, offset: int, byte: int, mixed: bool) -> DataError:
    """Describe a byte that is not UTF-8, and whether UTF-8 came before it."""
    if mixed:
        advice = (
            "UTF-8 text came before it, so the file mixes encodings: re-export it, or convert the odd parts."
        )
    else:
        advice = "Convert the file, e.g. `iconv -f WINDOWS-1252 -t UTF-8`."
    return DataError(f"byte 0x{byte:02X} at offset {offset} is not UTF-8. {advice}", path=path, line=line)
