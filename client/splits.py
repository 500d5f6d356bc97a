"""Train, development and test by a keyed hash of the patient (or document, or record).

The split of an id depends on the key and the id alone: records that come later change nothing for those that are
there, and all notes of one id go the same way. Without the key nobody can tell from an id where it went.
"""

from __future__ import annotations

import hmac
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.keys import read_private, write_new_private
from client.preprocessing import Rejected
from common.errors import InputError, ValidationError
from common.records import Note
from common.validation import require_choice

SPLITS = ("train", "devel", "test")
UNITS = ("patient", "document", "record")
_DOMAIN = b"fedward-split-v1\x1f"
_KEY_BYTES = 32
_WHAT = "split key"


@dataclass(frozen=True, kw_only=True)
class Splitter:
    """Says into which split a note goes.

    Attributes:
        fractions: Shares of train, devel and test of the *ids*; they sum to 1.
        unit: Whose id decides: patient, document or record.
        key: At least 32 secret bytes.

    Raises:
        ValidationError: The fractions do not sum to 1, or the key is short.
    """

    fractions: tuple[float, ...]
    unit: str
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Check the fields."""
        require_choice("--split-by", self.unit, UNITS)
        require_fractions(self.fractions)
        if len(self.key) < _KEY_BYTES:
            raise ValidationError(
                f"the split key has {len(self.key)} bytes; it must have at least {_KEY_BYTES}."
            )

    def id_of(self, note: Note) -> str:
        """Return the id that decides.

        Raises:
            Rejected: The note has none; another id is never put in its place, or a patient could be on both sides.
        """
        found = {"patient": note.patient_id, "document": note.document_id, "record": note.note_id}[self.unit]
        if found is None:
            raise Rejected(f"no-{self.unit}-id", note_id=note.note_id)
        return found

    def split_of(self, note: Note) -> str:
        """Return `train`, `devel` or `test`.

        Raises:
            Rejected: See `id_of`.
        """
        digest = hmac.digest(self.key, _DOMAIN + f"{self.unit}\x1f{self.id_of(note)}".encode(), "sha256")
        position = int.from_bytes(digest[:8], "big") / 2**64
        border = 0.0
        for name, fraction in zip(SPLITS, self.fractions, strict=True):
            border += fraction
            if position < border:
                return name
        # Rounding may leave the last border a hair below 1.
        return next(n for n, f in zip(reversed(SPLITS), reversed(self.fractions), strict=True) if f > 0)


def unit_for(note: Note) -> str:
    """Return the largest unit that a note names."""
    if note.patient_id is not None:
        return "patient"
    return "document" if note.document_id is not None else "record"


def parse_fractions(text: str) -> tuple[float, ...]:
    """Return the fractions of `0.8,0.1,0.1`.

    Raises:
        ValidationError: There are not three numbers that sum to 1.
    """
    try:
        fractions = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValidationError(
            f"--split is {text!r}; it must be three numbers that sum to 1, such as 0.8,0.1,0.1."
        ) from None
    return require_fractions(fractions)


def require_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Return the fractions if there are three, none negative, with the sum 1 and a training share."""
    good = len(fractions) == len(SPLITS) and all(0 <= f <= 1 for f in fractions)
    if not good or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        shown = ",".join(f"{f:g}" for f in fractions)
        raise ValidationError(
            f"--split is {shown}; it must be three numbers that sum to 1, such as 0.8,0.1,0.1."
        )
    return tuple(fractions)


def load_split_key(path: Path) -> bytes:
    """Return the key of a file that its owner alone may read; an absent file is made with a new key.

    Raises:
        InputError: Others may read the file, or it holds no key of 64 hexadecimal digits.
    """
    if not path.exists():
        write_new_private(path, secrets.token_hex(_KEY_BYTES).encode() + b"\n", what=_WHAT)
    try:
        key = bytes.fromhex(read_private(path, what=_WHAT).decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        key = b""
    if len(key) < _KEY_BYTES:
        raise InputError(f"{path} holds no key of 64 hexadecimal digits; remove it to have a new one made.")
    return key


class LabelBalance:
    """Notes, ids and entity mentions of each split; ids are remembered as 8 bytes of a hash."""

    def __init__(self) -> None:
        self._notes = Counter[str]()
        self._spans: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
        self._ids: dict[str, set[int]] = {name: set() for name in SPLITS}

    def add(self, split: str, note: Note, unit_id: str) -> None:
        """Count a note."""
        self._notes[split] += 1
        self._spans[split].update(span.label for span in note.spans)
        self._ids[split].add(hash(unit_id))

    def to_dict(self) -> dict[str, dict[str, int | Mapping[str, int]]]:
        """Return the counts by split; they describe private data and stay at the site."""
        return {
            name: {
                "notes": self._notes[name],
                "units": len(self._ids[name]),
                "mentions": dict(sorted(self._spans[name].items())),
            }
            for name in SPLITS
            if self._notes[name]
        }
