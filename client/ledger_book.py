"""What a ledger's entries say, read in order: accounts, charges and spooled updates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.accounting import UNITS, Mechanism, mechanism_from_dict, require_delta
from common.errors import ValidationError
from common.hash_chain import ChainError, Link, canonical_json, public_key_text, sign, verify_signature
from common.validation import require_choice, require_int, require_text

_CONSENT = "fedward ledger key v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


def require_name(name: str, value: object) -> str:
    """Return `value` if it is a name: letters, digits, `.`, `_` and `-`, at most 64."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValidationError(
            f"{name} is not a name of letters, digits, '.', '_' and '-', at most 64 of them."
        )
    return value


def require_hash(name: str, value: object) -> str:
    """Return `value` if it is a SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValidationError(f"{name} is not a SHA-256 of 64 lower-case hexadecimal digits.")
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A population whose privacy is accounted for together.

    Attributes:
        name: The site's name for the population.
        unit: What one contribution covers.
        delta: The lifetime limit's delta, in (0, 1); below one over the population.
        declaration: What the operator declares: who is in the population and, for a further account, that
            no patient of it is in another one.
        disjoint_from: The accounts whose patients this population shares none with.
    """

    name: str
    unit: str
    delta: float
    declaration: str
    disjoint_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields' forms."""
        require_name("account", self.name)
        require_choice("unit", self.unit, UNITS)
        require_delta(self.delta)
        require_text("declaration", self.declaration)
        object.__setattr__(self, "disjoint_from", tuple(sorted(self.disjoint_from)))

    def to_body(self) -> str:
        """Return the entry's body."""
        return canonical_json(
            {
                "name": self.name,
                "unit": self.unit,
                "delta": self.delta,
                "declaration": self.declaration,
                "disjoint_from": list(self.disjoint_from),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """One training of one round, as it is charged before the training starts.

    Attributes:
        account: The population that is trained on.
        unit: The plan's privacy unit, which must be the account's.
        plan_hash: SHA-256 of the plan.
        run_id: The fedward run, the same across restarts.
        server_round: From 1.
        attempt: The attempt at the round that asked for the training, from 0.
        mechanisms: Everything that this training may release.
        rounds: Rounds that the plan has.
        reserve_rounds: Rounds that the plan lets be trained once more. Its epsilon covers both.
        fingerprint: SHA-256 of the data set, as evidence only; None where it is not known.
    """

    account: str
    unit: str
    plan_hash: str
    run_id: str
    server_round: int
    attempt: int
    mechanisms: tuple[Mechanism, ...]
    rounds: int
    reserve_rounds: int
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Check the fields' forms."""
        require_name("account", self.account)
        require_choice("unit", self.unit, UNITS)
        require_hash("plan_hash", self.plan_hash)
        require_name("run_id", self.run_id)
        require_int("server_round", self.server_round, minimum=1, maximum=1_000_000)
        require_int("attempt", self.attempt, minimum=0, maximum=1_000_000)
        require_int("rounds", self.rounds, minimum=1, maximum=1_000_000)
        require_int("reserve_rounds", self.reserve_rounds, minimum=0, maximum=1_000_000)
        if not self.mechanisms:
            raise ValidationError("a charge names no mechanism; a private round releases at least one.")
        if self.fingerprint is not None:
            require_hash("fingerprint", self.fingerprint)

    @property
    def job(self) -> tuple[str, str, str]:
        """What the charge is counted with: account, plan and run."""
        return self.account, self.plan_hash, self.run_id

    def to_body(self) -> str:
        """Return the entry's body."""
        return canonical_json(
            {
                "account": self.account,
                "unit": self.unit,
                "plan_hash": self.plan_hash,
                "run_id": self.run_id,
                "server_round": self.server_round,
                "attempt": self.attempt,
                "mechanisms": [one.to_dict() for one in self.mechanisms],
                "rounds": self.rounds,
                "reserve_rounds": self.reserve_rounds,
                "fingerprint": self.fingerprint,
            }
        )


def key_body(previous: str, new: Ed25519PrivateKey) -> str:
    """Return the body of the entry that hands the ledger over to a new key.

    The old key signs the entry, and the new key its place in the chain: else whoever has some key could
    make a ledger of their own and hand it over to a site that never saw it.
    """
    text = public_key_text(new.public_key())
    return canonical_json({"public_key": text, "consent": sign(_CONSENT, f"{previous} {text}", new)})


def successor(link: Link) -> Ed25519PublicKey | None:
    """Return the key that signs from the next entry on, where this one hands over.

    Raises:
        ChainError: The new key did not consent.
    """
    if link.kind != "key":
        return None
    body = json.loads(link.body)
    key = _public_key(body["public_key"])
    try:
        verify_signature(_CONSENT, f"{link.previous} {body['public_key']}", body["consent"], key)
    except InvalidSignature:
        raise ChainError(link.sequence, "hands over to a key that did not consent") from None
    return key


def first_key(links: Sequence[Link]) -> Ed25519PublicKey | None:
    """Return the key that a ledger says it was made with; None where it says nothing."""
    if not links or links[0].kind != "genesis":
        return None
    return _public_key(json.loads(links[0].body)["public_key"])


def _public_key(text: str) -> Ed25519PublicKey:
    """Return a public key from its hexadecimal digits."""
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))


@dataclass(kw_only=True)
class Book:
    """The state that a ledger's verified entries add up to.

    Attributes:
        ledger: The ledger's random name.
        keys: The site's keys, the one that signs now last.
        accounts: By name.
        charges: By entry number.
        spooled: Entry number of the charge that each spooled update was trained under, by the update's hash.
    """

    ledger: str = ""
    keys: list[Ed25519PublicKey] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)
    charges: dict[int, Charge] = field(default_factory=dict)
    spooled: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_links(cls, links: Iterable[Link]) -> Book:
        """Return the book of these links.

        Raises:
            ValidationError: An entry says something that this version does not write.
        """
        book = cls()
        for link in links:
            body = json.loads(link.body)
            if link.kind == "genesis":
                book.ledger = body["ledger"]
                book.keys.append(_public_key(body["public_key"]))
            elif link.kind == "key":
                book.keys.append(_public_key(body["public_key"]))
            elif link.kind == "account":
                account = Account(**body | {"disjoint_from": tuple(body["disjoint_from"])})
                book.accounts[account.name] = account
            elif link.kind == "charge":
                mechanisms = tuple(mechanism_from_dict(one) for one in body["mechanisms"])
                book.charges[link.sequence] = Charge(**body | {"mechanisms": mechanisms})
            elif link.kind == "spooled":
                book.spooled[body["update_hash"]] = body["charge"]
            elif link.kind != "witness-adopted":
                raise ValidationError(f"entry {link.sequence} is of the unknown kind {link.kind!r}.")
        return book

    def mechanisms(self, account: str) -> list[Mechanism]:
        """Return everything that was ever charged to an account."""
        return [m for charge in self.charges.values() if charge.account == account for m in charge.mechanisms]

    def jobs(self) -> Mapping[tuple[str, str, str], list[Charge]]:
        """Return the charges by account, plan and run, in the order of their first charge."""
        jobs: dict[tuple[str, str, str], list[Charge]] = {}
        for charge in self.charges.values():
            jobs.setdefault(charge.job, []).append(charge)
        return jobs
