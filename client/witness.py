"""The head of a site's ledger, signed: kept in a file elsewhere, and echoed by the server.

A ledger's chain cannot show that its end was cut off. Its head, known from another place, can: a
database that does not contain the head was deleted, cut, edited or restored from an older copy.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import DecodeError, LedgerError
from common.files import write_private
from common.hash_chain import canonical_json, sign, verify_signature

_DOMAIN = "fedward ledger head v1"
_FORMS = {"ledger": r"[0-9a-f]{32}", "hash": r"[0-9a-f]{64}", "signature": r"[0-9a-f]{128}"}

WITNESS_CHANGED = (
    "the ledger's witness was changed, or is not signed with this site's key; restore it from its newest "
    "copy, or check that site.toml names the key that the ledger is kept with."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedHead:
    """Where a ledger stood: the number and hash of its last entry, signed with the site's key.

    It tells how many entries the ledger has, and nothing about what they say.

    Attributes:
        ledger: The ledger's random name, 32 hexadecimal digits.
        sequence: Number of the last entry, from 1.
        hash: Hash of the last entry, 64 hexadecimal digits.
        signature: Ed25519 over the three, 128 hexadecimal digits.
    """

    ledger: str
    sequence: int
    hash: str
    signature: str

    @classmethod
    def sign(cls, *, ledger: str, sequence: int, digest: str, key: Ed25519PrivateKey) -> SignedHead:
        """Return the head, signed."""
        signature = sign(_DOMAIN, f"{ledger} {sequence} {digest}", key)
        return cls(ledger=ledger, sequence=sequence, hash=digest, signature=signature)

    def verify(self, keys: Iterable[Ed25519PublicKey]) -> None:
        """Return if one of the keys signed this head.

        Raises:
            InvalidSignature: None did.
        """
        for key in keys:
            with contextlib.suppress(InvalidSignature):
                verify_signature(_DOMAIN, f"{self.ledger} {self.sequence} {self.hash}", self.signature, key)
                return
        raise InvalidSignature

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "v": 1,
            "ledger": self.ledger,
            "sequence": self.sequence,
            "hash": self.hash,
            "signature": self.signature,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> SignedHead:
        """Return the head that `to_dict` wrote; its signature is not checked yet.

        Raises:
            DecodeError: The values are not a head of this version.
        """
        sequence = values.get("sequence")
        texts = {name: str(values.get(name)) for name in _FORMS}
        good = all(re.fullmatch(form, texts[name]) for name, form in _FORMS.items())
        if (
            not good
            or type(sequence) is not int
            or not 1 <= sequence < 2**53
            or values.get("v") != 1
            or values.keys() != {"v", "sequence", *_FORMS}
        ):
            raise DecodeError("a ledger head is not of version 1, or lacks a field.")
        return cls(sequence=sequence, **texts)


def read_witness(path: Path) -> SignedHead | None:
    """Return the head that the witness file holds, its signature unchecked; None where there is no file.

    Raises:
        LedgerError: The file cannot be read, or is not a witness.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"{path}: the ledger's witness cannot be read ({error.strerror}).") from error
    require_private(path)
    try:
        return SignedHead.from_dict(json.loads(raw))
    except (ValueError, AttributeError, DecodeError) as error:
        raise LedgerError(f"{path}: {WITNESS_CHANGED}") from error


def write_witness(path: Path, head: SignedHead) -> None:
    """Replace the witness file and return once it is on the disk.

    Raises:
        OSError: The disk is full or the folder cannot be written; the old witness is untouched.
    """
    write_private(path, canonical_json(head.to_dict()).encode() + b"\n")


def require_private(path: Path) -> None:
    """Raise unless nobody but its owner can read or write a file.

    Raises:
        LedgerError: Others can.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise LedgerError(
            f"{path}: mode is {mode:04o}, so that other users can reach it; run `chmod 600 {path}` and find "
            "out who had access."
        )
