"""What a site must remember about secure aggregation across restarts: which answers it has given.

The guard holds numbers, nonces and a digest of the update, never a key, a share or an update. It is an
append-only file of one JSON object per line; a line is on the disk before the answer that it stands for
leaves the site. A line that a crash left unfinished stands for an answer that never left.

Formal guarantees, for all processes that share the file:
    *Rounds only grow*: after round r, no attempt of an earlier round begins.
    *Attempts only grow*: within a round, an attempt number begins once, in increasing order.
    *Nonces are never reused*, whatever the round.
    *One answer per stage* of an attempt, and only in the newest attempt.
    *After `confirm`* no further attempt of that round begins: its sum may have been opened.
    *Before `confirm`* a retry masks the same update, so that two cohorts' masked vectors hold one value.
Not covered: a host whose whole disk is set back to an earlier state.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import FedwardError, InputError, ProtocolRefused
from common.files import sync

_CONFIRM = "confirm"

_Key = tuple[int, int]
"""Round and attempt."""


class RoundGuard:
    """The record of one site's answers under one plan, in `secure-rounds.jsonl` of its spool folder.

    Args:
        folder: The spool folder of this plan; made with mode 0700 where absent.

    Raises:
        InputError: The file cannot be opened, or others have access to it.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the record."""
        self._path = folder / "secure-rounds.jsonl"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: the spool folder cannot be made ({error.strerror}).") from None
        with self._locked():
            sync(folder)

    def begin(self, round_number: int, attempt: int, nonce: bytes) -> None:
        """Record that an attempt begins.

        Raises:
            ProtocolRefused: The round or attempt is not new, the nonce was used, or the round's `confirm`
                was answered.
        """
        with self._locked() as record:
            last, tried = record.newest
            if round_number < last:
                raise ProtocolRefused(
                    f"Round {round_number} was asked for after round {last}; rounds only grow."
                )
            if any(key[0] == round_number and stage == _CONFIRM for key, stage in record.answers):
                raise ProtocolRefused(
                    f"Round {round_number} was confirmed already; no further attempt is answered, for its "
                    f"sum may have been opened. Go on with round {round_number + 1}."
                )
            if round_number == last and attempt <= tried:
                raise ProtocolRefused(
                    f"Attempt {attempt} of round {round_number} was asked for after attempt {tried}; "
                    f"attempts only grow."
                )
            if nonce.hex() in record.nonces:
                raise ProtocolRefused(
                    f"The nonce of round {round_number}, attempt {attempt} was used before."
                )
            record.append({"round": round_number, "attempt": attempt, "nonce": nonce.hex()})

    def answer(self, round_number: int, attempt: int, stage: str, *, update: bytes | None = None) -> None:
        """Record that a stage is answered; call it before the answer leaves.

        Args:
            round_number: The round.
            attempt: The attempt.
            stage: The stage's name.
            update: Digest of the update that this answer masks, where it masks one.

        Raises:
            ProtocolRefused: The stage was answered, the attempt is not the newest that began here, or a
                retry would mask another update than the attempt before it.
        """
        with self._locked() as record:
            key = (round_number, attempt)
            if record.newest != key:
                raise ProtocolRefused(
                    f"Attempt {attempt} of round {round_number} is not the newest attempt of this site."
                )
            if (key, stage) in record.answers:
                raise ProtocolRefused(
                    f"The stage {stage} of round {round_number}, attempt {attempt} was answered before."
                )
            entry: dict[str, int | str] = {"round": round_number, "attempt": attempt, "stage": stage}
            if update is not None:
                if record.updates.get(round_number, update.hex()) != update.hex():
                    raise ProtocolRefused(
                        f"A retry of round {round_number} must mask the update of the first attempt, and "
                        f"this is another."
                    )
                entry["update"] = update.hex()
            record.append(entry)

    @contextmanager
    def _locked(self) -> Iterator[_Record]:
        """The record, read under a lock that other processes and threads wait for."""
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise InputError(f"{self._path}: the round guard cannot be opened ({error.strerror}).") from None
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            if mode & 0o077:
                raise InputError(
                    f"{self._path}: the round guard has mode {mode:04o}; others must not have access. Run "
                    f"'chmod 600 {self._path}'."
                )
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield _Record(handle, self._path)
        finally:
            os.close(handle)


class _Record:
    """The parsed file, while its lock is held."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle = handle
        self.newest: _Key = (0, 0)
        self.nonces: set[str] = set()
        self.answers: set[tuple[_Key, str]] = set()
        self.updates: dict[int, str] = {}
        content = _read_all(handle)
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.ftruncate(handle, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise FedwardError(
                    f"{path}, line {number}: the round guard is damaged. Nothing of this plan is answered "
                    f"until it is restored; it must not be deleted."
                ) from None

    def append(self, entry: dict[str, int | str]) -> None:
        """Write one line and flush it to the disk."""
        line = json.dumps(entry).encode() + b"\n"
        try:
            written = os.write(self._handle, line)
            os.fsync(self._handle)
        except OSError as error:
            raise FedwardError(f"The round guard cannot be written ({error.strerror}).") from None
        if written != len(line):
            raise FedwardError("The round guard cannot be written; is the disk full?")

    def _apply(self, entry: dict[str, int | str]) -> None:
        """Take one line into account."""
        key = (int(entry["round"]), int(entry["attempt"]))
        if "nonce" in entry:
            self.newest = max(self.newest, key)
            self.nonces.add(str(entry["nonce"]))
            return
        self.answers.add((key, str(entry["stage"])))
        if "update" in entry:
            self.updates.setdefault(key[0], str(entry["update"]))


def _read_all(handle: int) -> bytes:
    """The file from its start."""
    os.lseek(handle, 0, os.SEEK_SET)
    parts = []
    while part := os.read(handle, 1 << 20):
        parts.append(part)
    return b"".join(parts)
