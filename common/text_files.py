"""UTF-8 files of records, line by line, with errors that say where the bytes are wrong and what to do."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from common.errors import DataError

_PDF_MARK = b"%PDF-"
_WIDE_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}


_watch: ContextVar[Callable[[int], None] | None] = ContextVar("watch", default=None)


@contextmanager
def watching_bytes(watch: Callable[[int], None]) -> Iterator[None]:
    """Call `watch` with the number of bytes of each part of a file that is read in this block."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def report_bytes(count: int) -> None:
    """Tell whoever watches that so many bytes were read."""
    watch = _watch.get()
    if watch is not None:
        watch(count)


def read_lines(
    path: Path, *, on_error: Callable[[DataError], None] | None = None, keep_ends: bool = False
) -> Iterator[tuple[int, str]]:
    r"""Yield `(line number, line)` without line ends; a line ends with `\n` or `\r\n` and nothing else.

    A byte order mark of UTF-8 is dropped. Only one line is in memory at a time.

    Args:
        path: The file.
        on_error: Receives the error of a line that is not UTF-8, which is then left out; without it, the error
            is raised.
        keep_ends: Leave the line ends on.

    Raises:
        DataError: The file cannot be opened, is empty or no text file, or a line is not UTF-8.
    """
    offset, seen_wide = 0, False
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                start = 0 if number > 1 else _mark_length(raw, path)
                begin, offset = offset + start, offset + len(raw)
                report_bytes(len(raw))
                try:
                    line = _decode(raw[start:], path, number, begin, seen_wide)
                except DataError as error:
                    if on_error is None:
                        raise
                    on_error(error)
                    continue
                seen_wide = seen_wide or not line.isascii()
                yield number, line if keep_ends else line.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path, reason="unreadable") from error
    if offset == 0:
        raise DataError(
            "is empty; leave the file out or put records into it.", path=path, reason="empty-file"
        )


def read_head(path: Path, *, size: int = 1 << 20) -> str:
    """Return the first `size` bytes of a file for a look at them; what is not UTF-8 shows as U+FFFD.

    Raises:
        DataError: The file cannot be opened, is empty or no text file.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(size)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path, reason="unreadable") from error
    if not raw:
        raise DataError(
            "is empty; leave the file out or put records into it.", path=path, reason="empty-file"
        )
    return raw[_mark_length(raw, path) :].decode("utf-8", "replace")


def read_chunks(path: Path, *, size: int = 1 << 16) -> Iterator[str]:
    """Yield a whole file in parts of about `size` bytes, for formats in which a line may be the whole file.

    Raises:
        DataError: The file cannot be opened, is empty or no text file, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, mixed = 0, 1, False
    try:
        with path.open("rb") as file:
            while raw := file.read(size):
                start = 0 if offset else _mark_length(raw, path)
                report_bytes(len(raw))
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(raw[start:])
                except UnicodeDecodeError as error:
                    place = offset + start - pending + error.start
                    line += error.object[: error.start].count(b"\n")
                    raise _not_utf8(path, line, place, error.object[error.start], mixed) from None
                offset, line, mixed = offset + len(raw), line + text.count("\n"), mixed or not text.isascii()
                yield text
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path, reason="unreadable") from error
    if offset == 0:
        raise DataError(
            "is empty; leave the file out or put records into it.", path=path, reason="empty-file"
        )
    if cut := decoder.getstate()[0]:
        raise _not_utf8(path, line, offset - len(cut), cut[0], mixed)


def read_text(path: Path) -> str:
    r"""Return a whole file exactly as it is, with its `\r` and its byte order mark: offsets count them.

    Raises:
        DataError: The file cannot be opened, is empty, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}).", path=path, reason="unreadable") from error
    if not raw:
        raise DataError(
            "is empty; leave the file out or put a record into it.", path=path, reason="empty-file"
        )
    _mark_length(raw, path)
    report_bytes(len(raw))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        raise _not_utf8(path, line, error.start, raw[error.start], not before.isascii()) from None


def _mark_length(raw: bytes, path: Path) -> int:
    """Return the length of a UTF-8 byte order mark; refuse those of wider encodings, and PDF."""
    if raw.startswith(_PDF_MARK):
        raise DataError(
            "is a PDF whatever its name says; extract its text first, e.g. `pdftotext FILE`.",
            path=path,
            line=1,
            reason="pdf",
        )
    for mark, name in _WIDE_MARKS.items():
        if raw.startswith(mark):
            raise DataError(
                f"is {name}; records must be UTF-8. Convert it, e.g. `iconv -f {name} -t UTF-8`.",
                path=path,
                line=1,
                reason="not-utf8",
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
    return DataError(
        f"byte 0x{byte:02X} at offset {offset} is not UTF-8. {advice}",
        path=path,
        line=line,
        reason="not-utf8",
    )
