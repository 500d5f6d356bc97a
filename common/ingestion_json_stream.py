"""The elements of a long JSON array, one at a time: an export of many records is never in memory as a whole.

The array is the whole file, or the value of one key of the object that the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from common.errors import DataError
from common.text_files import read_chunks

_SPACE = " \t\r\n"
_FIRST_CHUNK = 1 << 16
_LARGEST = 1 << 28
"""Most characters of one element; a longer one is taken for a broken file."""

_DECODER = json.JSONDecoder()


def stream_array(path: Path, *, keys: tuple[str, ...]) -> Iterator[tuple[int, object]]:
    """Yield `(line, element)` of the array that is the file, or that stands in its object under one of `keys`.

    Args:
        path: A UTF-8 JSON file.
        keys: Where the array may stand in an object at the top; other values are skipped.

    Raises:
        DataError: The file cannot be read, is cut short, is no JSON, or holds no such array. What came before
            the fault was yielded.
    """
    text = _Text(path)
    opening = text.next()
    if opening == "[":
        text.take()
        yield from _elements(text)
        return
    if opening != "{":
        raise text.error("is neither a JSON object nor an array.")
    text.take()
    while (mark := text.next()) != "}":
        if mark == ",":
            text.take()
            continue
        key = text.value()
        if text.next() != ":":
            raise text.error("has a key without a value.")
        text.take()
        if key in keys and text.next() == "[":
            text.take()
            yield from _elements(text)
            return
        text.value()
    raise text.error(f"has no list {' or '.join(keys)}.")


def _elements(text: _Text) -> Iterator[tuple[int, object]]:
    """Yield the elements up to the closing bracket."""
    while (mark := text.next()) != "]":
        if mark == ",":
            text.take()
            text.next()
        line = text.line
        yield line, text.value()


class _Text:
    """A file's text from the current position on; what was passed is forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks = read_chunks(path)
        self._buffer = ""
        self._position = 0
        self.line = 1

    def next(self) -> str:
        """Return the next character that is no white space, without passing it."""
        while True:
            while self._position < len(self._buffer):
                if self._buffer[self._position] not in _SPACE:
                    return self._buffer[self._position]
                self._position += 1
            if not self._more(_FIRST_CHUNK):
                raise self.error("ends in the middle; export it again.")

    def take(self) -> None:
        """Pass one character."""
        self._position += 1

    def value(self) -> object:
        """Return the JSON value at the current position, reading on for as long as it is not whole."""
        self.next()
        chunk = _FIRST_CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer, self._position)
            except ValueError:
                whole = False
            except RecursionError:
                raise self.error("is nested too deeply.") from None
            else:
                # A number at the very end of what was read may go on.
                whole = end < len(self._buffer)
            if whole:
                self._position = end
                return value
            if not self._more(chunk) or len(self._buffer) > _LARGEST:
                raise self.error("holds something that is no JSON, or ends in the middle; export it again.")
            chunk *= 2

    def error(self, message: str) -> DataError:
        """Return an error about the current position."""
        self._forget()
        return DataError(message, path=self._path, line=self.line, reason="not-json")

    def _more(self, characters: int) -> bool:
        """Read at least so many more characters, if there are any."""
        self._forget()
        parts, length = [self._buffer], 0
        for chunk in self._chunks:
            parts.append(chunk)
            length += len(chunk)
            if length >= characters:
                break
        self._buffer = "".join(parts)
        return length > 0

    def _forget(self) -> None:
        """Drop what was passed, and count its lines."""
        self.line += self._buffer.count("\n", 0, self._position)
        self._buffer, self._position = self._buffer[self._position :], 0
