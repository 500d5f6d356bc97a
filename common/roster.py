"""The roster: who takes part, with which identity key, and with which public weight.

The roster's hash is part of the plan hash, so a new member, a rotated or a revoked key is a new plan that
every site approves anew. Fingerprints are for people to compare out of band.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.errors import InputError, PlanError, ValidationError
from common.files import write_atomically
from common.validation import require_int, require_known_keys, require_text
from common.wire_format import Writer

MAXIMUM_MEMBERS = 4096
"""Most sites in one roster."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[0-9a-f]{64}")
_FIELDS = ("name", "identity_key", "public_units")


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One site of the roster.

    Attributes:
        name: Letters, digits, `.`, `_` and `-`, at most 64, starting with a letter or digit.
        identity_key: The site's Ed25519 public key, 32 bytes.
        public_units: The public number that the site's weight is in proportion to, at least 1.
    """

    name: str
    identity_key: bytes
    public_units: int = 1

    def __post_init__(self) -> None:
        """Check every attribute."""
        require_text("a member's name", self.name)
        if not _NAME.fullmatch(self.name):
            raise ValidationError(
                f"The member name {self.name!r} must be 1 to 64 letters, digits, '.', '_' or '-', and start "
                f"with a letter or digit."
            )
        if not isinstance(self.identity_key, bytes) or len(self.identity_key) != 32:
            raise ValidationError(f"The identity key of {self.name} must be 32 bytes.")
        require_int(f"public_units of {self.name}", self.public_units, minimum=1, maximum=2**40)

    @property
    def fingerprint(self) -> str:
        """The identity key's fingerprint."""
        return fingerprint(self.identity_key)


@dataclass(frozen=True)
class Roster:
    """The members in order of name.

    Raises:
        ValidationError: There is no member, or two share a name or an identity key.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        """Sort by name, and check that names and keys differ."""
        if not 1 <= len(self.members) <= MAXIMUM_MEMBERS:
            raise ValidationError(
                f"A roster has {len(self.members)} members; it must have 1 to {MAXIMUM_MEMBERS}."
            )
        object.__setattr__(self, "members", tuple(sorted(self.members, key=lambda member: member.name)))
        by_name: dict[str, Member] = {}
        by_key: dict[bytes, Member] = {}
        for member in self.members:
            # Names differing only in case would be told apart by the protocol but not by a reader.
            if member.name.lower() in by_name:
                raise ValidationError(f"The roster lists {member.name} twice; names must differ.")
            if other := by_key.get(member.identity_key):
                raise ValidationError(
                    f"The members {other.name} and {member.name} have the same identity key; each site "
                    f"makes its own with 'fedward-site keys new'."
                )
            by_name[member.name.lower()] = by_key[member.identity_key] = member

    def __len__(self) -> int:
        """The number of members."""
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        """The members in order of name."""
        return iter(self.members)

    def __contains__(self, name: object) -> bool:
        """Whether there is a member of this name."""
        return name in self._by_name

    def member(self, name: str) -> Member:
        """Return the member of this name.

        Raises:
            ValidationError: There is none.
        """
        if name not in self._by_name:
            raise ValidationError(f"The roster has no member {name!r}.")
        return self._by_name[name]

    def weight(self, name: str) -> float:
        """Return the site's public weight in (0, 1]: its public units over the largest."""
        return self.member(name).public_units / self._largest

    def weights(self) -> dict[str, float]:
        """Return every site's public weight."""
        return {member.name: member.public_units / self._largest for member in self.members}

    def digest(self) -> bytes:
        """Return the SHA-256 of the roster's canonical encoding (32 bytes)."""
        out = Writer().text("fedward roster v1").u16(len(self.members))
        for member in self.members:
            out.text(member.name).raw(member.identity_key, 32)
            out.raw(member.public_units.to_bytes(8), 8)
        return hashlib.sha256(out.finish()).digest()

    def require_digest(self, roster_sha256: str) -> None:
        """Raise unless this is the roster that a plan names in `federation.roster_sha256`.

        Raises:
            PlanError: The plan names another roster, or none.
        """
        own = self.digest().hex()
        if not roster_sha256:
            raise PlanError(
                "The plan names no roster, so that its members could be exchanged unseen; set "
                f'federation.roster_sha256 to "{own}".'
            )
        if own != roster_sha256:
            raise PlanError(
                f"The plan is for the roster with federation.roster_sha256 {roster_sha256[:16]!r}..., but the "
                f"roster given has {own[:16]!r}...; use the roster that belongs to the plan."
            )

    def with_member(self, member: Member) -> Roster:
        """Return a roster with one more member."""
        return Roster((*self.members, member))

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        """The members by name."""
        return {member.name: member for member in self.members}

    @cached_property
    def _largest(self) -> int:
        """The most public units that one member has."""
        return max(member.public_units for member in self.members)


def fingerprint(identity_key: bytes) -> str:
    """Return 160 bits of the key's SHA-256 as ten groups of four hexadecimal digits."""
    text = hashlib.sha256(b"fedward identity key v1" + identity_key).hexdigest()[:40]
    return " ".join(text[at : at + 4] for at in range(0, 40, 4))


def parse_identity_key(text: str) -> bytes:
    """Return a public identity key from its 64 lower-case hexadecimal digits.

    Raises:
        ValidationError: The text is something else.
    """
    if not isinstance(text, str) or not _KEY.fullmatch(text):
        raise ValidationError(
            "An identity_key must be 64 lower-case hexadecimal digits; see fedward-site keys show."
        )
    return bytes.fromhex(text)


def read_roster(path: Path) -> Roster:
    """Read a roster from its TOML file.

    Raises:
        PlanError: The file cannot be read, or an entry is not usable; the sentence says which.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path}: the roster cannot be read ({error}).") from None
    try:
        require_known_keys("the roster", document, ("member",))
        entries = document.get("member", [])
        if not isinstance(entries, list):
            raise ValidationError("The roster's members must be written as [[member]] tables.")
        return Roster(tuple(_parse_member(number, entry) for number, entry in enumerate(entries, 1)))
    except InputError as error:
        raise PlanError(f"{path}: {error}") from None


def write_roster(roster: Roster, path: Path) -> None:
    """Write a roster as TOML; the file is replaced whole or not at all."""
    lines = ["# The sites of one federation. A change here is a new plan that every site approves."]
    for member in roster:
        lines += [
            "",
            "[[member]]",
            f'name = "{member.name}"',
            f'identity_key = "{member.identity_key.hex()}"',
            f"public_units = {member.public_units}",
        ]
    write_atomically(path, "\n".join(lines) + "\n")


def _parse_member(number: int, entry: object) -> Member:
    """Return one [[member]] table as a member."""
    where = f"[[member]] number {number}"
    if not isinstance(entry, dict):
        raise ValidationError(f"{where} must be a table.")
    require_known_keys(where, entry, _FIELDS)
    for key in _FIELDS[:2]:
        if key not in entry:
            raise ValidationError(f"{where} lacks {key}.")
    try:
        identity_key = parse_identity_key(entry["identity_key"])
    except ValidationError as error:
        raise ValidationError(f"{where}: {error}") from None
    return Member(name=entry["name"], identity_key=identity_key, public_units=entry.get("public_units", 1))
