"""One attempt's cohort as everybody sees it, and the keys and checks that both ends derive from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from common.aggregation_graph import AggregationGraph, design_graph
from common.errors import DecodeError
from common.key_exchange import derive_key
from common.secagg_messages import Advert, advert_set_hash
from common.secagg_parameters import HASH_BYTES, AttemptContext, SecureAggregationParameters
from common.wire_format import Writer


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """The adverts of an attempt in order of name; a site's position is its place among them.

    Attributes:
        adverts: The decoded adverts.
        digest: The hash that pins adverts and positions.
        graph: Who is whose neighbour, and the thresholds.
    """

    adverts: tuple[Advert, ...]
    digest: bytes
    graph: AggregationGraph = field(repr=False)

    @classmethod
    def of(
        cls, encoded: Sequence[bytes], context: AttemptContext, parameters: SecureAggregationParameters
    ) -> Cohort:
        """Decode a list of adverts.

        Raises:
            DecodeError: An advert does not decode, or they are not in strict order of name.
            ValidationError: So few sites cannot be aggregated.
        """
        adverts = tuple(Advert.decode(data, expected=context) for data in encoded)
        names = [advert.name for advert in adverts]
        if any(later <= earlier for earlier, later in pairwise(names)):
            raise DecodeError("A list of adverts names a site twice or is not in order of name.")
        digest = advert_set_hash(encoded)
        graph = AggregationGraph(design_graph(len(adverts), parameters), digest)
        return cls(adverts=adverts, digest=digest, graph=graph)

    def name(self, position: int) -> str:
        """Return the name of the site at a position."""
        return self.adverts[position].name

    def names(self, positions: Sequence[int]) -> tuple[str, ...]:
        """Return the names at several positions."""
        return tuple(self.adverts[position].name for position in positions)

    def pairwise_key(self, agreed: bytes, share_context: bytes, one: int, other: int) -> bytes:
        """Return the key of two sites' mask; the site with the lower position adds it, the other subtracts.

        The share context makes masks of sites that were shown different share sets unrelated.
        """
        low, high = sorted((one, other))
        names = (self.name(low).encode(), self.name(high).encode())
        return derive_key(agreed, salt=share_context, purpose="pairwise mask", context=names)

    def self_mask_key(self, seed: bytes, share_context: bytes, position: int) -> bytes:
        """Return the key of a site's own mask."""
        name = self.name(position).encode()
        return derive_key(seed, salt=share_context, purpose="self mask", context=(name,))

    def sealing_key(self, agreed: bytes, context_hash: bytes, sender: int, receiver: int) -> bytes:
        """Return the key for shares from one site to another; the other direction has another key."""
        names = (self.name(sender).encode(), self.name(receiver).encode())
        return derive_key(agreed, salt=context_hash, purpose="sealed shares", context=names)

    def sealing_data(self, context_hash: bytes, sender: int, receiver: int) -> bytes:
        """Return the associated data of a sealed share: attempt, adverts, sender and receiver."""
        out = Writer().text("fedward sealed shares v1").raw(context_hash, HASH_BYTES)
        out.raw(self.digest, HASH_BYTES).text(self.name(sender)).text(self.name(receiver))
        return out.finish()


def self_mask_commitment(context_hash: bytes, name: str, seed: bytes) -> bytes:
    """Return the commitment to a self-mask seed; hiding, for the seed has 256 random bits."""
    out = Writer().text("fedward self-mask commitment v1").raw(context_hash, HASH_BYTES).text(name)
    return hashlib.sha256(out.raw(seed, 32).finish()).digest()
