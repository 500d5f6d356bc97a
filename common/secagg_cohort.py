"""One attempt's cohort as everybody sees it, and the keys and checks that both ends derive from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from common.aggregation_graph import AggregationGraph, design_graph
from common.errors import DecodeError
from common.key_exchange import KEY_BYTES, derive_key
from common.secagg_messages import Advert, advert_outline, advert_set_hash
from common.secagg_parameters import HASH_BYTES, SecureAggregationParameters
from common.wire_format import Writer


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The adverts of an attempt in order of name; a site's position is its place among them.

    Attributes:
        encoded: The adverts' bytes.
        names: The sites' names, strictly increasing.
        contexts: The adverts' context bytes.
        keys: The adverts' three keys each, joined.
        digest: The hash that pins adverts and positions.
        graph: Who is whose neighbour, and the thresholds.
    """

    encoded: tuple[bytes, ...] = field(repr=False)
    names: tuple[str, ...]
    contexts: tuple[bytes, ...] = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    digest: bytes
    graph: AggregationGraph = field(repr=False)

    @classmethod
    def of(cls, encoded: Sequence[bytes], parameters: SecureAggregationParameters) -> Cohort:
        """Read a list of adverts.

        Raises:
            DecodeError: Something is no advert, or they are not in strict order of name.
            ValidationError: So few sites cannot be aggregated.
        """
        outlines = [advert_outline(data) for data in encoded]
        names, contexts, keys = zip(*outlines, strict=True) if outlines else ((), (), ())
        if any(later <= earlier for earlier, later in pairwise(names)):
            raise DecodeError("A list of adverts names a site twice or is not in order of name.")
        digest = advert_set_hash(encoded)
        return cls(
            encoded=tuple(encoded),
            names=names,
            contexts=contexts,
            keys=keys,
            digest=digest,
            graph=AggregationGraph(design_graph(len(names), parameters), digest),
        )

    def __len__(self) -> int:
        """The number of sites."""
        return len(self.names)

    def advert(self, position: int) -> Advert:
        """Return the advert at a position.

        Raises:
            DecodeError: It does not decode.
        """
        return Advert.decode(self.encoded[position])

    def encryption_key(self, position: int) -> bytes:
        """Return the X25519 key for sealing shares to a site."""
        return self.keys[position][:KEY_BYTES]

    def mask_key(self, position: int) -> bytes:
        """Return the X25519 key for masks with a site."""
        return self.keys[position][KEY_BYTES : 2 * KEY_BYTES]

    def commitment(self, position: int) -> bytes:
        """Return the commitment to a site's self-mask seed."""
        return self.keys[position][2 * KEY_BYTES :]

    def names_at(self, positions: Iterable[int]) -> tuple[str, ...]:
        """Return the names at several positions."""
        return tuple(self.names[position] for position in positions)

    def pairwise_key(self, agreed: bytes, share_context: bytes, one: int, other: int) -> bytes:
        """Return the key of two sites' mask; the site with the lower position adds it, the other subtracts.

        The share context makes masks of sites that were shown different share sets unrelated.
        """
        low, high = sorted((one, other))
        names = (self.names[low].encode(), self.names[high].encode())
        return derive_key(agreed, salt=share_context, purpose="pairwise mask", context=names)

    def self_mask_key(self, seed: bytes, share_context: bytes, position: int) -> bytes:
        """Return the key of a site's own mask."""
        name = self.names[position].encode()
        return derive_key(seed, salt=share_context, purpose="self mask", context=(name,))

    def sealing_key(self, agreed: bytes, context_hash: bytes, sender: int, receiver: int) -> bytes:
        """Return the key for shares from one site to another; the other direction has another key."""
        names = (self.names[sender].encode(), self.names[receiver].encode())
        return derive_key(agreed, salt=context_hash, purpose="sealed shares", context=names)

    def sealing_data(self, context_hash: bytes, sender: int, receiver: int) -> bytes:
        """Return the associated data of a sealed share: attempt, adverts, sender and receiver."""
        out = Writer().text("fedward sealed shares v1").raw(context_hash, HASH_BYTES)
        out.raw(self.digest, HASH_BYTES).text(self.names[sender]).text(self.names[receiver])
        return out.finish()


def self_mask_commitment(context_hash: bytes, name: str, seed: bytes) -> bytes:
    """Return the commitment to a self-mask seed; hiding, for the seed has 256 random bits."""
    out = Writer().text("fedward self-mask commitment v1").raw(context_hash, HASH_BYTES).text(name)
    return hashlib.sha256(out.raw(seed, 32).finish()).digest()
