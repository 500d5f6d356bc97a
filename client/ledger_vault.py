"""The ledger's files as one thing: a database, its witness elsewhere, and the lock that one writer holds.

Everything is checked each time: charges are minutes apart, and a file may be changed in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.ledger_book import Book, first_key, key_body, successor
from client.ledger_store import LedgerStore
from client.witness import WITNESS_CHANGED, SignedHead, read_witness, write_witness
from common.errors import LedgerError, ValidationError
from common.files import PRIVATE
from common.hash_chain import (
    GENESIS,
    ChainError,
    Link,
    canonical_json,
    forge_link,
    public_key_text,
    verify_links,
)

_DOMAIN = "fedward ledger v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A ledger whose every entry was verified a moment ago.

    Attributes:
        links: Its entries, at least one.
        book: What they say.
    """

    links: list[Link]
    book: Book


class LedgerVault:
    """Reads, checks and appends to a ledger's files.

    Args:
        path: The database.
        witness: The witness file, in another folder.
        key: The site's identity key.
        read_only: Neither lock nor write.
        on_stage: Called with `before-database`, `before-witness` and `after-witness` of every entry.

    Raises:
        LedgerError: There is no ledger, or another process has it open.
    """

    def __init__(
        self,
        *,
        path: Path,
        witness: Path,
        key: Ed25519PrivateKey,
        read_only: bool,
        on_stage: Callable[[str], None],
    ) -> None:
        """Take the lock, unless the ledger is only to be read."""
        _require_elsewhere(path, witness)
        _require_exists(path, witness)
        self.path = path
        self.witness = witness
        self._store = LedgerStore(path)
        self._key = key
        self._read_only = read_only
        self._on_stage = on_stage
        self._process_lock = None if read_only else _lock(path)

    @staticmethod
    def create(*, path: Path, witness: Path, key: Ed25519PrivateKey) -> SignedHead:
        """Make an empty ledger and its witness.

        Raises:
            LedgerError: Either file is there already, or one cannot be written.
        """
        _require_elsewhere(path, witness)
        if witness.exists() and not path.exists():
            raise LedgerError(_deleted(path, witness))
        name = secrets.token_hex(16)
        first = forge_link(
            domain=_DOMAIN,
            sequence=1,
            kind="genesis",
            time=_now(),
            body=canonical_json({"ledger": name, "public_key": public_key_text(key.public_key()), "v": 1}),
            previous=GENESIS,
            key=key,
        )
        LedgerStore(path).create(first)
        head = SignedHead.sign(ledger=name, sequence=1, digest=first.hash, key=key)
        with _witness_errors(witness):
            write_witness(witness, head)
        return head

    def open(self) -> Opened:
        """Return the ledger after checking its chain, its signatures and its witness.

        Raises:
            LedgerError: The files are not the ledger that was left.
        """
        opened, witness = self._compared()
        behind = len(opened.links) - (0 if witness is None else witness.sequence)
        # A crash between database and witness leaves the database one ahead; the entry counts.
        if behind > 1:
            raise LedgerError(
                f"{self.witness}: the witness is "
                f"{'missing' if witness is None else 'older than the ledger'}, "
                f"{behind} entries behind; if you know why, run `fedward-site budget --adopt-witness`, else "
                "find out who changed it."
            )
        if behind == 1 and not self._read_only:
            self._write_witness(opened.book.ledger, opened.links[-1])
        return opened

    def open_without_witness(self) -> Opened:
        """Return the ledger though its witness may be missing or old; never though it is ahead.

        Raises:
            LedgerError: The database is not whole, or the witness shows that it is behind.
        """
        return self._compared()[0]

    def append(self, opened: Opened, kind: str, body: str) -> Link:
        """Add an entry to the database, then to the witness, and return once both are on the disk.

        Raises:
            LedgerError: The ledger is read-only, or a file cannot be written. Where the witness alone cannot
                be, the entry stays in the database.
        """
        link = self._next(opened, kind, body)
        self._commit(opened, link)
        return link

    def hand_over(self, opened: Opened, new: Ed25519PrivateKey) -> None:
        """Add the entry after which a new key signs the ledger.

        Raises:
            LedgerError: As `append` does; the ledger is then to be opened again, with the key it names.
        """
        # The entry carries the old key's signature, and the witness after it the new key's.
        link = self._next(opened, "key", key_body(opened.links[-1].hash, new))
        self._key = new
        self._commit(opened, link)

    def head(self, opened: Opened) -> SignedHead:
        """Return where the ledger stands, signed."""
        return self._sign(opened.book.ledger, opened.links[-1])

    def require_echo(self, opened: Opened, echo: SignedHead) -> None:
        """Raise unless the database contains a head that somebody else sent back.

        Raises:
            LedgerError: It does not, or the head is not this site's.
        """
        try:
            echo.verify(opened.book.keys)
        except InvalidSignature as error:
            raise LedgerError(
                "the ledger head that the server sent back is not signed with this site's key; the round is "
                "refused. Ask the server's operator which site's head it kept."
            ) from error
        self._require_contains(opened, echo, "the head that the server sent back")

    def close(self) -> None:
        """Let another process open the ledger."""
        if self._process_lock is not None:
            os.close(self._process_lock)
            self._process_lock = None

    def _next(self, opened: Opened, kind: str, body: str) -> Link:
        """Return the entry after the last, signed."""
        if self._read_only:
            raise LedgerError(f"{self.path}: the ledger was opened for reading only.")
        return forge_link(
            domain=_DOMAIN,
            sequence=len(opened.links) + 1,
            kind=kind,
            time=_now(),
            body=body,
            previous=opened.links[-1].hash,
            key=self._key,
        )

    def _commit(self, opened: Opened, link: Link) -> None:
        """Put an entry on the disk: database, then witness."""
        self._on_stage("before-database")
        self._store.append(link)
        self._on_stage("before-witness")
        self._write_witness(opened.book.ledger, link)
        self._on_stage("after-witness")

    def _compared(self) -> tuple[Opened, SignedHead | None]:
        """Return the ledger and its witness, after checking that the one contains the other."""
        # The witness first: a reader beside a running agent then never sees it ahead of the database.
        witness = read_witness(self.witness)
        opened = self._verified()
        if witness is not None:
            try:
                witness.verify(opened.book.keys)
            except InvalidSignature as error:
                raise LedgerError(f"{self.witness}: {WITNESS_CHANGED}") from error
            self._require_contains(opened, witness, f"{self.witness}: the witness")
        return opened, witness

    def _verified(self) -> Opened:
        """Return the database's links and what they say, each link verified."""
        _require_exists(self.path, self.witness)
        links = self._store.read()
        try:
            verified = verify_links(
                links, domain=_DOMAIN, key=first_key(links) or self._key.public_key(), successor=successor
            )
            book = Book.from_links(verified)
        except ChainError as error:
            raise LedgerError(
                f"{self.path}: entry {error.position} {error.reason}; nothing more is charged. Restore the "
                "newest whole copy of the ledger, and find out who changed it."
            ) from error
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"{self.path}: an entry was written by another version of fedward ({error}); use that "
                "version."
            ) from error
        if not book.ledger:
            raise LedgerError(
                f"{self.path}: the ledger is empty, so its entries were removed; restore its newest copy."
            )
        # The chain vouches for itself only if it ends with the key that this site holds.
        if book.keys[-1] != self._key.public_key():
            raise LedgerError(
                f"{self.path}: the ledger is not kept with this site's key; check which key site.toml "
                "names. A new "
                "key takes a ledger over only while the old one is at hand (`fedward-site keys rotate`)."
            )
        return Opened(links=links, book=book)

    def _require_contains(self, opened: Opened, head: SignedHead, whose: str) -> None:
        """Raise unless the database contains a head that is known from elsewhere."""
        links = opened.links
        if head.ledger != opened.book.ledger:
            raise LedgerError(
                f"{whose} is of another ledger than {self.path}: one of them was replaced. Put back the "
                "ledger that belongs to it; a new ledger does not bring back what was spent."
            )
        if head.sequence > len(links):
            raise LedgerError(
                f"{whose} has seen {head.sequence} entries and {self.path} has {len(links)}: it was cut or "
                "restored from an older copy. Restore a copy with all of them; without one, what was spent "
                "is not known and its accounts must count as spent."
            )
        if links[head.sequence - 1].hash != head.hash:
            raise LedgerError(
                f"{whose} knows another entry {head.sequence} than {self.path} has: the ledger was put "
                "back and written to again. Restore the copy that has that entry."
            )

    def _write_witness(self, ledger: str, last: Link) -> None:
        """Replace the witness file."""
        with _witness_errors(self.witness):
            write_witness(self.witness, self._sign(ledger, last))

    def _sign(self, ledger: str, last: Link) -> SignedHead:
        """Return the signed head after an entry."""
        return SignedHead.sign(ledger=ledger, sequence=last.sequence, digest=last.hash, key=self._key)


def _now() -> str:
    """Return the time of an entry."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _require_elsewhere(path: Path, witness: Path) -> None:
    """Raise if the witness lies where whatever befalls the database befalls it too."""
    if path.resolve().parent == witness.resolve().parent:
        raise ValidationError(
            f"witness {witness} lies in the ledger's own folder; name a file in another folder, best on "
            "another disk, so that one accident or one restore does not take both."
        )


def _require_exists(path: Path, witness: Path) -> None:
    """Raise if there is no database."""
    if path.exists():
        return
    if witness.exists():
        raise LedgerError(_deleted(path, witness))
    raise LedgerError(f"{path}: there is no ledger; make one with `fedward-site budget --create`.")


def _deleted(path: Path, witness: Path) -> str:
    """Return what to say where the witness is all that is left."""
    return (
        f"{path}: the ledger is gone and its witness {witness} is still there; restore the ledger's newest "
        "copy. Without one, what was spent is not known and its accounts must count as spent."
    )


def _lock(path: Path) -> int:
    """Take the lock that one writing process holds, and return its handle."""
    try:
        handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise LedgerError(f"{path}.lock: the ledger cannot be locked ({error.strerror}).") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise LedgerError(
            f"{path}: the ledger is open in another process, probably a second agent of this site; stop "
            "that one first. Nothing was charged."
        ) from error
    return handle


@contextlib.contextmanager
def _witness_errors(witness: Path) -> Iterator[None]:
    """Say what a witness that cannot be written means."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"{witness}: the ledger's witness could not be written ({error.strerror}); an entry that the "
            "database "
            "holds already stays, and nothing may be trained. Make room or mount its disk, then try again."
        ) from error
