"""A chain of entries in which each holds the hash of the one before, signed where a key is at hand.

The audit log and the privacy ledger are two such chains. A chain shows that nothing inside it was
changed, removed or reordered. It cannot show that its end was cut off: for that, its head must be known
from elsewhere (`client.witness`, or the last head that the server echoes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

GENESIS = "0" * 64
"""The `previous` of a chain's first entry."""


class ChainError(Exception):
    """A link does not fit; whoever owns the chain turns this into an error of its own.

    Attributes:
        position: The 1-based position of the first link at fault.
        reason: What is wrong, as the end of a sentence.
    """

    def __init__(self, position: int, reason: str) -> None:
        """Name the position and the reason."""
        super().__init__(f"entry {position} {reason}")
        self.position = position
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """One entry of a chain.

    Attributes:
        sequence: 1-based position.
        kind: What the entry records.
        time: When it was written, UTC, ISO 8601, as the writer's clock had it.
        body: The entry's values as canonical JSON.
        previous: Hash of the entry before, `GENESIS` for the first; 64 hexadecimal digits.
        hash: SHA-256 over everything above and the chain's domain; 64 hexadecimal digits.
        signature: Ed25519 over the hash and the domain, 128 hexadecimal digits; empty where unsigned.
    """

    sequence: int
    kind: str
    time: str
    body: str
    previous: str
    hash: str
    signature: str


def public_key_text(key: Ed25519PublicKey) -> str:
    """Return a public key as 64 hexadecimal digits."""
    return key.public_bytes_raw().hex()


def canonical_json(values: Mapping[str, object]) -> str:
    """Return the one spelling of these values: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sign(domain: str, text: str, key: Ed25519PrivateKey) -> str:
    """Return a signature over `text` that is valid in this domain only, 128 hexadecimal digits."""
    return key.sign(f"{domain}\n{text}".encode()).hex()


def verify_signature(domain: str, text: str, signature: str, key: Ed25519PublicKey) -> None:
    """Raise `InvalidSignature` unless `signature` is the key's, over `text`, in this domain."""
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise InvalidSignature from None
    key.verify(raw, f"{domain}\n{text}".encode())


def forge_link(
    *,
    domain: str,
    sequence: int,
    kind: str,
    time: str,
    body: str,
    previous: str,
    key: Ed25519PrivateKey | None,
) -> Link:
    """Return the next link of a chain, signed where there is a key."""
    digest = _digest(domain, sequence, kind, time, body, previous)
    return Link(
        sequence=sequence,
        kind=kind,
        time=time,
        body=body,
        previous=previous,
        hash=digest,
        signature="" if key is None else sign(domain, digest, key),
    )


def verify_links(
    links: Iterable[Link],
    *,
    domain: str,
    key: Ed25519PublicKey | None,
    successor: Callable[[Link], Ed25519PublicKey | None] = lambda link: None,
) -> Iterator[Link]:
    """Yield the links of a whole chain, from its first, each once it is known to fit.

    Args:
        links: In the order in which they were read.
        domain: The chain's name, which every hash covers.
        key: Whose signature each link must carry; None where the chain is unsigned.
        successor: Returns the key that signs the links after this one, where a link hands over to another.

    Raises:
        ChainError: A link is out of place, was changed, or is not signed by the key.
    """
    previous = GENESIS
    for position, link in enumerate(links, start=1):
        if link.sequence != position:
            raise ChainError(position, f"carries number {link.sequence}: an entry was removed or moved")
        if not all(isinstance(one, str) for one in (link.kind, link.time, link.body, link.signature)):
            raise ChainError(position, "was changed after it was written")
        if link.previous != previous:
            raise ChainError(position, "does not follow the entry before it: one was changed or removed")
        if link.hash != _digest(domain, position, link.kind, link.time, link.body, previous):
            raise ChainError(position, "was changed after it was written")
        if key is not None:
            try:
                verify_signature(domain, link.hash, link.signature, key)
            except InvalidSignature:
                raise ChainError(position, "is not signed with the key that it should be") from None
            key = successor(link) or key
        previous = link.hash
        yield link


def _digest(domain: str, sequence: int, kind: str, time: str, body: str, previous: str) -> str:
    """Return the hash of one entry; a JSON list keeps the parts apart."""
    parts = json.dumps([domain, sequence, kind, time, body, previous], separators=(",", ":"))
    return hashlib.sha256(parts.encode()).hexdigest()
