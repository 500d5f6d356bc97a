"""A hash-chained log of what a site or server decided: JSON lines, signed where there is a key.

Only the fields below can be written, each with a form of its own: hashes, numbers, fixed codes and
names without spaces. There is no field that clinical text would fit in.

Formal guarantees
-----------------
`verify` accepts a file only if every line is as it was appended, in order, none missing before the
last. A cut-off end is found by comparing `AuditLog.head` with a head kept elsewhere: pass it to `verify`.
Without a key, whoever can write the file can also rewrite it as a whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import DataError, FedwardError, ValidationError
from common.files import PRIVATE, sync
from common.hash_chain import GENESIS, ChainError, Link, canonical_json, forge_link, verify_links
from common.validation import require_choice, require_known_keys

KINDS = ("approval", "charge", "refusal", "round", "release")
DOMAIN = "fedward audit log v1"

_Scalar = str | int | float | bool


def _text(pattern: str) -> Callable[[object], bool]:
    """Return a check for a text of one form."""
    form = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and form.fullmatch(value) is not None


def _count(value: object) -> bool:
    """Return whether the value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _number(value: object) -> bool:
    """Return whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_HASH = _text(r"[0-9a-f]{64}")
_CODE = _text(r"[a-z][a-z0-9-]{0,39}")
_NAME = _text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

FIELDS: Mapping[str, Callable[[object], bool]] = {
    "plan_hash": _HASH,
    "roster_hash": _HASH,
    "model_hash": _HASH,
    "update_hash": _HASH,
    "file_hash": _HASH,
    "ledger_hash": _HASH,
    "fingerprint": _HASH,
    "run_id": _NAME,
    "account": _NAME,
    "site": _NAME,
    "stage": _CODE,
    "code": _CODE,
    "what": _CODE,
    "unit": _CODE,
    "server_round": _count,
    "attempt": _count,
    "ledger_sequence": _count,
    "sites": _count,
    "survivors": _count,
    "cohort": _count,
    "clauses": _count,
    "steps": _count,
    "epsilon": _number,
    "delta": _number,
    "seconds": _number,
    "recharge": lambda value: isinstance(value, bool),
    "secure_aggregation": lambda value: isinstance(value, bool),
}
"""What may be logged, and the form of each: the whole allow-list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One line of the log.

    Attributes:
        line: 1-based.
        time: UTC, ISO 8601.
        kind: One of `KINDS`.
        values: Fields of `FIELDS`.
        hash: What the next line follows; 64 hexadecimal digits.
    """

    line: int
    time: str
    kind: str
    values: Mapping[str, _Scalar]
    hash: str


class AuditLog:
    """An append-only file that several processes of one owner may write to.

    Args:
        path: The file; made with mode 0600 by the first append.
        key: Signs each line, where given.
        clock: Returns the time that is written; for tests.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: Ed25519PrivateKey | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Name the file; nothing is opened yet."""
        self.path = path
        self._key = key
        self._clock = clock

    def append(self, kind: str, **values: _Scalar) -> AuditEntry:
        """Write one line and return once it is on the disk.

        Args:
            kind: One of `KINDS`.
            values: Fields of `FIELDS`.

        Raises:
            ValidationError: The kind or a field is not on the allow-list, or a value has not its form.
            FedwardError: The file cannot be written; it is left as it was.
        """
        check_values(kind, values)
        try:
            with self._locked() as handle:
                return self._append(handle, kind, values)
        except OSError as error:
            raise FedwardError(
                f"{self.path}: the audit log cannot be written ({error.strerror}); "
                "make room or give the owner write access, then try again."
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file, made if need be, and hold it against other writers."""
        new = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if new:
                sync(self.path.parent)
            yield handle
        finally:
            os.close(handle)

    def _append(self, handle: int, kind: str, values: Mapping[str, _Scalar]) -> AuditEntry:
        """Add a line after the last whole one."""
        last, end = _last_line(handle)
        tail = None if last is None else _parse(last, self.path, None)
        link = forge_link(
            domain=DOMAIN,
            sequence=1 if tail is None else tail.sequence + 1,
            kind=kind,
            time=self._clock().astimezone(UTC).isoformat(timespec="milliseconds"),
            body=canonical_json(values),
            previous=GENESIS if tail is None else tail.hash,
            key=self._key,
        )
        # A line that a crash cut short was never acknowledged: it makes room.
        os.ftruncate(handle, end)
        _write_whole(handle, _spell(link), end)
        return _entry(link)


def verify(
    path: Path, *, key: Ed25519PublicKey | None = None, head: tuple[int, str] | None = None
) -> list[AuditEntry]:
    """Return every entry of a log that is whole.

    Args:
        path: The log.
        key: Whose signature each line must carry; None checks the chain alone.
        head: Number and hash of a line known from elsewhere, which the log must contain.

    Raises:
        DataError: The first broken line, with its number; or the log lacks the known head.
    """
    try:
        with path.open("rb") as file:
            entries = [_entry(link) for link in verify_links(_links(file, path), domain=DOMAIN, key=key)]
    except ChainError as error:
        raise DataError(f"the line {error.reason}.", path=path, line=error.position) from error
    except OSError as error:
        raise DataError(f"the audit log cannot be read ({error.strerror}).", path=path) from error
    if head is not None and (len(entries) < head[0] or entries[head[0] - 1].hash != head[1]):
        raise DataError(
            f"the log does not contain line {head[0]} as it is known from elsewhere: its end was cut off or "
            "the file was replaced; restore it from a copy, and find out who changed it.",
            path=path,
        )
    return entries


def check_values(kind: str, values: Mapping[str, object]) -> None:
    """Raise unless the kind and every field and value are on the allow-list.

    Raises:
        ValidationError: The sentence names the field but never repeats a value: it may be clinical.
    """
    require_choice("audit kind", kind, KINDS)
    require_known_keys(f"audit entry {kind!r}", values, FIELDS)
    for name, value in values.items():
        if not FIELDS[name](value):
            raise ValidationError(
                f"audit field {name!r} has not the form that this field allows; "
                "only hashes, numbers, fixed codes and names without spaces may be logged."
            )


def _entry(link: Link) -> AuditEntry:
    """Return a link as an entry."""
    return AuditEntry(
        line=link.sequence, time=link.time, kind=link.kind, values=json.loads(link.body), hash=link.hash
    )


def _spell(link: Link) -> bytes:
    """Return the line of a link."""
    values = {
        "v": 1,
        "sequence": link.sequence,
        "time": link.time,
        "kind": link.kind,
        "values": json.loads(link.body),
        "previous": link.previous,
        "hash": link.hash,
        "signature": link.signature,
    }
    return canonical_json(values).encode() + b"\n"


def _links(lines: Iterator[bytes], path: Path) -> Iterator[Link]:
    """Yield the links of a file's lines."""
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            raise DataError("the line was cut short.", path=path, line=number)
        yield _parse(line, path, number)


def _parse(line: bytes, path: Path, number: int | None) -> Link:
    """Return the link of one line, which must be exactly as `_spell` writes it."""
    try:
        values = json.loads(line)
        link = Link(
            sequence=values["sequence"],
            kind=values["kind"],
            time=values["time"],
            body=canonical_json(values["values"]),
            previous=values["previous"],
            hash=values["hash"],
            signature=values["signature"],
        )
        check_values(link.kind, values["values"])
        exact = _spell(link) == line
    except (ValueError, KeyError, TypeError, AttributeError, FedwardError):
        exact = False
    if not exact:
        raise DataError("the line is not an entry as this program writes them.", path=path, line=number)
    return link


def _last_line(handle: int) -> tuple[bytes | None, int]:
    """Return the last line that ends, if any, and where it ends."""
    size, block, start, tail = os.fstat(handle).st_size, 4096, os.fstat(handle).st_size, b""
    while start > 0:
        step = min(block, start)
        start -= step
        tail = os.pread(handle, step, start) + tail
        end = tail.rfind(b"\n") + 1
        begin = tail.rfind(b"\n", 0, end - 1) + 1 if end else 0
        if end and (begin or start == 0):
            return tail[begin:end], size - len(tail) + end
    return None, 0


def _write_whole(handle: int, content: bytes, offset: int) -> None:
    """Write all of the content and put it on the disk, or put the file back as it was."""
    try:
        written = 0
        while written < len(content):
            written += os.pwrite(handle, content[written:], offset + written)
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, offset)
        raise
