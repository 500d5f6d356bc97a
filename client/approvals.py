"""The plans that a site's operator approved, in a small file signed with the site's key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from client.ledger_book import require_hash, require_name
from client.policy import PlanFacts
from client.witness import require_private
from common.errors import PolicyError
from common.files import write_private
from common.hash_chain import canonical_json, sign, verify_signature
from common.validation import require_int, require_text

_DOMAIN = "fedward approvals v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class RosterMember:
    """A member as the operator is shown it, to be compared out of band.

    Attributes:
        name: The site's name.
        fingerprint: Of its identity key.
        public_units: The public number that its weight is in proportion to, at least 1.
    """

    name: str
    fingerprint: str
    public_units: int

    def __post_init__(self) -> None:
        """Check the fields' forms."""
        require_name("member", self.name)
        require_text(f"fingerprint of {self.name}", self.fingerprint)
        require_int(f"public_units of {self.name}", self.public_units, minimum=1, maximum=2**40)


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """One approved plan, as it was when it was approved.

    Attributes:
        facts: The plan's numbers.
        roster: Its members.
        time: When it was approved, UTC, ISO 8601.
    """

    facts: PlanFacts
    roster: tuple[RosterMember, ...]
    time: str


@dataclass(frozen=True, kw_only=True)
class Approvals:
    """The approved plans in the order of their approval, each at most once.

    Attributes:
        path: Their file.
        entries: The approvals.
    """

    path: Path
    entries: tuple[Approval, ...] = field(default=())

    @classmethod
    def load(cls, path: Path, key: Ed25519PublicKey) -> Approvals:
        """Return what the file holds; nothing is approved where there is no file.

        Args:
            path: The file that `save` wrote.
            key: The site's identity key.

        Raises:
            PolicyError: The file was changed, is not signed with the site's key, or cannot be read.
        """
        try:
            raw = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls(path=path)
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(f"{path}: the list of approved plans cannot be read.") from error
        require_private(path)
        try:
            outer = json.loads(raw)
            verify_signature(_DOMAIN, canonical_json(outer["approvals"]), outer["signature"], key)
            entries = tuple(_approval(one) for one in outer["approvals"]["entries"])
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature) as error:
            raise PolicyError(
                f"{path}: the list of approved plans was changed, or is not signed with this site's key; "
                "remove the file and approve again the plans that you know."
            ) from error
        return cls(path=path, entries=entries)

    def __contains__(self, plan_hash: object) -> bool:
        """Return whether the plan of this hash is approved."""
        return any(one.facts.plan_hash == plan_hash for one in self.entries)

    @property
    def latest(self) -> Approval | None:
        """The approval made last."""
        return self.entries[-1] if self.entries else None

    def approve(self, facts: PlanFacts, roster: Sequence[RosterMember], key: Ed25519PrivateKey) -> Approvals:
        """Return the approvals with this plan as the latest, once the file is on the disk.

        Raises:
            PolicyError: The file cannot be written.
        """
        entry = Approval(
            facts=facts,
            roster=tuple(sorted(roster, key=lambda one: one.name)),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return self._saved((*self._without(facts.plan_hash), entry), key)

    def revoke(self, plan_hash: str, key: Ed25519PrivateKey) -> Approvals:
        """Return the approvals without this plan, once the file is on the disk.

        Raises:
            PolicyError: The plan is not approved, or the file cannot be written.
        """
        require_hash("plan_hash", plan_hash)
        if plan_hash not in self:
            raise PolicyError(f"plan {plan_hash[:12]} is not approved, so that there is nothing to revoke.")
        return self._saved(self._without(plan_hash), key)

    def changes(self, facts: PlanFacts, roster: Sequence[RosterMember]) -> tuple[str, ...]:
        """Return, in words, how a plan differs from the one approved last; empty where it does not."""
        if self.latest is None:
            return ("No plan was approved before: every member below is new to this site.",)
        return (*_roster_changes(self.latest.roster, roster), *_plan_changes(self.latest.facts, facts))

    def _without(self, plan_hash: str) -> tuple[Approval, ...]:
        """Return the entries of other plans."""
        return tuple(one for one in self.entries if one.facts.plan_hash != plan_hash)

    def _saved(self, entries: tuple[Approval, ...], key: Ed25519PrivateKey) -> Approvals:
        """Write these entries, signed."""
        inner = {"v": 1, "entries": [asdict(one) for one in entries]}
        outer = {"approvals": inner, "signature": sign(_DOMAIN, canonical_json(inner), key)}
        try:
            write_private(self.path, canonical_json(outer).encode() + b"\n")
        except OSError as error:
            raise PolicyError(
                f"{self.path}: the list of approved plans cannot be written ({error.strerror}); nothing was "
                "approved or revoked."
            ) from error
        return Approvals(path=self.path, entries=entries)


def describe_roster(roster: Sequence[RosterMember]) -> str:
    """Return the members, one a line, with the fingerprints that the operator compares out of band."""
    width = max((len(one.name) for one in roster), default=0)
    lines = [
        f"  {one.name:<{width}}  {one.fingerprint}  ({one.public_units} public units)"
        for one in sorted(roster, key=lambda one: one.name)
    ]
    return "\n".join(
        ["Members; compare each fingerprint with that site's operator, not with the server's:", *lines]
    )


def _roster_changes(before: Sequence[RosterMember], after: Sequence[RosterMember]) -> list[str]:
    """Return how the members changed."""
    old, new = ({one.name: one for one in side} for side in (before, after))
    changes = [f"{name} left the roster." for name in sorted(old.keys() - new.keys())]
    for name in sorted(new.keys() - old.keys()):
        changes.append(f"{name} is new, with the key {new[name].fingerprint}.")
    for name in sorted(old.keys() & new.keys()):
        if old[name].fingerprint != new[name].fingerprint:
            changes.append(
                f"{name} has another key: {new[name].fingerprint}, before {old[name].fingerprint}."
            )
        if old[name].public_units != new[name].public_units:
            changes.append(
                f"{name} counts {new[name].public_units} public units, before {old[name].public_units}."
            )
    return changes


def _plan_changes(before: PlanFacts, after: PlanFacts) -> list[str]:
    """Return how the numbers changed."""
    old, new = asdict(before), asdict(after)
    changes = [
        f"{name} is {_word(new[name])}, before {_word(old[name])}."
        for name in new
        if name != "plan_hash" and new[name] != old[name]
    ]
    if not changes and before.plan_hash != after.plan_hash:
        changes.append("The plan differs from the one before in something that this page does not show.")
    return changes


def _word(value: object) -> str:
    """Return a fact's value as it is read aloud."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _approval(values: Mapping[str, object]) -> Approval:
    """Return one approval of a verified file."""
    facts, roster = values["facts"], values["roster"]
    if not isinstance(facts, dict) or not isinstance(roster, list):
        raise TypeError
    return Approval(
        facts=PlanFacts(**facts),
        roster=tuple(RosterMember(**one) for one in roster),
        time=str(values["time"]),
    )
