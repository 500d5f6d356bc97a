"""The server's side of one attempt at secure aggregation: it routes, folds, and opens one sum.

The call order, with any number of sites missing at each step:

    add_advert...  close_adverts  ->  the same bytes to every advertiser
    add_shares...  close_shares   ->  bytes per site
    add_upload...  close_uploads  ->  the same bytes to every uploader
    add_confirmation... close_confirmations -> the same bytes to every survivor
    add_unmask...  finish         ->  OpenedSum

An `add_` call that raises `DecodeError` or `ProtocolRefused` means that this site's answer is not usable: the
site counts as dropped at that stage, and the attempt goes on. A `close_` call or `finish` that raises
`AbortError` ends the attempt; the caller may begin another one, before `close_uploads` for the same round,
after it for the next round only (sites refuse a retry once they have confirmed).

Uploads are folded one by one into one accumulator, so that two vectors at most exist: the sum and the one
that arrives. Reconstructed secrets are compared with the adverts before any mask is removed, so a wrong
share ends in an abort, never in a wrong sum.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from common.aggregation_graph import GraphDesign
from common.errors import AbortError, DecodeError, ProtocolRefused, ValidationError
from common.key_exchange import AgreementKey, verify
from common.masking import apply_masks
from common.quantization import RingLayout
from common.roster import Roster
from common.secagg_cohort import Cohort, self_mask_commitment
from common.secagg_messages import (
    Advert,
    AdvertList,
    Confirmation,
    ConfirmRequest,
    ShareDelivery,
    ShareList,
    UnmaskRequest,
    UnmaskResponse,
    UploadHeader,
    share_context,
    survivor_statement,
)
from common.secagg_parameters import AttemptContext, SecureAggregationParameters, Stage, parameters_hash
from common.secret_sharing import parse_share, reconstruct_secret

_KEYS_AT_A_TIME = 256
"""Mask keys that exist at once while the sum is unmasked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSum:
    """The outcome of one attempt.

    Attributes:
        vector: The sum modulo 2^32 of the survivors' encoded updates, `(length,)`.
        survivors: The names of the sites in the sum.
        dropouts: Per stage, the names of the sites that were asked and did not answer usably.
    """

    vector: NDArray[np.uint32] = field(repr=False)
    survivors: tuple[str, ...]
    dropouts: Mapping[str, tuple[str, ...]]


class SecureAggregationServer:
    """The server in one attempt.

    Args:
        roster: The plan's roster.
        parameters: The plan's parameters.
        layout: The plan's ring layout.
        context: Plan, model, round, attempt and nonce of the attempt.

    Raises:
        ValidationError: The parts do not fit each other.
    """

    def __init__(
        self,
        *,
        roster: Roster,
        parameters: SecureAggregationParameters,
        layout: RingLayout,
        context: AttemptContext,
    ) -> None:
        """Check that the parts fit."""
        if context.parameters_hash != parameters_hash(parameters, layout):
            raise ValidationError("The attempt's parameters_hash is not that of these parameters and layout.")
        if len(roster) > layout.maximum_sites:
            raise ValidationError(
                f"The roster has {len(roster)} members; the ring layout has room for {layout.maximum_sites}."
            )
        self._roster = roster
        self._parameters = parameters
        self._layout = layout
        self._context = context
        self._stage = Stage.ADVERTISE
        self._adverts: dict[str, bytes] = {}
        self._cohort: Cohort | None = None
        self._position_of: dict[str, int] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._share_set: tuple[int, ...] = ()
        self._share_context = b""
        self._sum: NDArray[np.uint32] | None = None
        self._uploaded: set[int] = set()
        self._alive: tuple[int, ...] = ()
        self._dead: tuple[int, ...] = ()
        self._signatures: dict[int, bytes] = {}
        self._responses: dict[int, UnmaskResponse] = {}
        self._dropouts: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        """Show the stage and the number of sites alone."""
        return f"SecureAggregationServer(stage={self._stage.name}, sites={len(self._adverts)})"

    @property
    def confirming(self) -> bool:
        """Whether sites have been asked to confirm: they then refuse every further attempt of the round."""
        return bool(self._alive)

    @property
    def dropouts(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the sites lost so far, per stage that was closed."""
        return dict(self._dropouts)

    @property
    def design(self) -> GraphDesign:
        """The neighbour graph's size and thresholds, once `close_adverts` was called."""
        return self._known_cohort().graph.design

    def add_advert(self, name: str, message: bytes) -> None:
        """Take one site's `Advert`.

        Raises:
            DecodeError: It is malformed.
            ProtocolRefused: It is of another site or attempt, not signed by the roster's key, or came twice.
        """
        self._require(Stage.ADVERTISE)
        advert = Advert.decode(message, expected=self._context)
        if advert.name != name or name not in self._roster:
            raise ProtocolRefused(
                f"The advert that {name} sent is of another site, or of none in the roster."
            )
        if name in self._adverts:
            raise ProtocolRefused(f"{name} has advertised already in this attempt.")
        if advert.context != self._context:
            raise ProtocolRefused(f"The advert of {name} is for another attempt, plan or model.")
        verify(self._roster.member(name).identity_key, advert.signature, "advert", advert.body())
        self._adverts[name] = bytes(message)

    def close_adverts(self) -> bytes:
        """Return the `AdvertList` for every site that advertised.

        Raises:
            AbortError: Too few sites advertised.
        """
        self._require(Stage.ADVERTISE)
        self._require_survivors(len(self._adverts), len(self._adverts), "advertised")
        encoded = tuple(self._adverts[name] for name in sorted(self._adverts))
        self._cohort = cohort = Cohort.of(encoded, self._parameters)
        self._position_of = {name: at for at, name in enumerate(cohort.names)}
        self._drop("advertise", (member.name for member in self._roster if member.name not in self._adverts))
        self._stage = Stage.SHARE_KEYS
        design = cohort.graph.design
        return AdvertList(
            cohort_threshold=design.cohort_threshold,
            share_threshold=design.share_threshold,
            degree=design.degree,
            adverts=encoded,
        ).encode()

    def add_shares(self, name: str, message: bytes) -> None:
        """Take one site's `ShareList`.

        Raises:
            DecodeError: It is malformed.
            ProtocolRefused: It is for another cohort, not for exactly the site's neighbours, or came twice.
        """
        position, cohort = self._sender(Stage.SHARE_KEYS, name), self._known_cohort()
        shares = ShareList.decode(message)
        if position in self._sealed:
            raise ProtocolRefused(f"{name} has shared its keys already in this attempt.")
        if shares.advert_set != cohort.digest:
            raise ProtocolRefused(f"The shares of {name} are for another list of adverts.")
        if tuple(receiver for receiver, _ in shares.sealed) != cohort.graph.neighbours(position):
            raise ProtocolRefused(f"The shares of {name} are not for exactly its neighbours.")
        self._sealed[position] = dict(shares.sealed)

    def close_shares(self) -> dict[str, bytes]:
        """Return the `ShareDelivery` for each site that shared keys, by name.

        Raises:
            AbortError: Too few sites shared keys.
        """
        self._require(Stage.SHARE_KEYS)
        cohort = self._known_cohort()
        self._require_survivors(len(self._sealed), len(cohort), "shared keys")
        self._share_set = tuple(sorted(self._sealed))
        self._share_context = share_context(self._context, cohort.digest, self._share_set)
        self._drop("share_keys", (name for at, name in enumerate(cohort.names) if at not in self._sealed))
        self._stage = Stage.UPLOAD
        deliveries = {cohort.names[at]: self._delivery(at).encode() for at in self._share_set}
        self._sealed = {}
        return deliveries

    def add_upload(self, name: str, header: bytes, vector: NDArray[np.uint32]) -> None:
        """Fold one masked vector into the sum; nothing of it is kept.

        Args:
            name: The sender.
            header: Its `UploadHeader`.
            vector: Its masked vector `(length,)`; not changed.

        Raises:
            DecodeError: The header is malformed, or the vector is not the one it describes.
            ProtocolRefused: It is for another share set, not signed by the sender, or came twice.
        """
        position = self._sender(Stage.UPLOAD, name)
        described = UploadHeader.decode(header)
        if position not in self._share_set or position in self._uploaded:
            raise ProtocolRefused(f"{name} has uploaded already, or did not share keys.")
        if described.position != position or described.share_context != self._share_context:
            raise ProtocolRefused(f"The upload of {name} is for another attempt or share set.")
        verify(self._roster.member(name).identity_key, described.signature, "upload", described.body())
        if vector.dtype != np.uint32 or not (vector.shape == (self._layout.length,) == (described.length,)):
            raise DecodeError(f"The upload of {name} is not a vector of {self._layout.length} uint32 values.")
        contiguous = np.ascontiguousarray(vector, "<u4")
        if not hmac.compare_digest(hashlib.sha256(contiguous.data).digest(), described.vector_hash):
            raise DecodeError(f"The vector of {name} arrived altered.")
        if self._sum is None:
            self._sum = np.zeros(self._layout.length, np.uint32)
        np.add(self._sum, contiguous, out=self._sum)
        self._uploaded.add(position)

    def close_uploads(self) -> bytes:
        """Return the `ConfirmRequest` for every uploader.

        Raises:
            AbortError: Too few sites uploaded.
        """
        self._require(Stage.UPLOAD)
        cohort = self._known_cohort()
        self._require_survivors(len(self._uploaded), len(cohort), "uploaded")
        self._alive = tuple(sorted(self._uploaded))
        self._dead = tuple(at for at in self._share_set if at not in self._uploaded)
        self._drop("upload", cohort.names_at(self._dead))
        self._stage = Stage.CONFIRM
        return ConfirmRequest(alive=self._alive, dead=self._dead).encode()

    def add_confirmation(self, name: str, message: bytes) -> None:
        """Take one site's `Confirmation`.

        Raises:
            DecodeError: It is malformed.
            ProtocolRefused: The sender is no survivor, has confirmed, or signed something else.
        """
        position = self._sender(Stage.CONFIRM, name)
        confirmation = Confirmation.decode(message)
        if (
            position not in self._uploaded
            or position in self._signatures
            or confirmation.position != position
        ):
            raise ProtocolRefused(f"The confirmation of {name} is not one that is awaited.")
        statement = survivor_statement(self._share_context, self._alive)
        verify(self._roster.member(name).identity_key, confirmation.signature, "survivors", statement)
        self._signatures[position] = confirmation.signature

    def close_confirmations(self) -> bytes:
        """Return the `UnmaskRequest` for every survivor that confirmed.

        Raises:
            AbortError: Too few sites confirmed.
        """
        self._require(Stage.CONFIRM)
        cohort = self._known_cohort()
        design = cohort.graph.design
        needed = design.cohort_threshold if design.full else self._needed(len(cohort))
        if len(self._signatures) < needed:
            self._abort(f"Only {len(self._signatures)} sites confirmed the survivors; {needed} are needed.")
        self._drop("confirm", cohort.names_at([at for at in self._alive if at not in self._signatures]))
        self._stage = Stage.UNMASK
        signatures = tuple(sorted(self._signatures.items()))
        return UnmaskRequest(alive=self._alive, dead=self._dead, signatures=signatures).encode()

    def add_unmask(self, name: str, message: bytes) -> None:
        """Take one survivor's `UnmaskResponse`.

        Raises:
            DecodeError: It is malformed, or holds something that is not a share.
            ProtocolRefused: It is not one share per holder of the right kind, or came twice.
        """
        position, cohort = self._sender(Stage.UNMASK, name), self._known_cohort()
        response = UnmaskResponse.decode(message)
        if position not in self._signatures or position in self._responses or response.position != position:
            raise ProtocolRefused(f"The shares that {name} sent for unmasking are not awaited.")
        shared = set(self._share_set)
        held = [at for at in cohort.graph.holders(position) if at in shared]
        seeds = [at for at in held if at in self._uploaded]
        keys = [at for at in held if at not in self._uploaded]
        if (
            response.share_context != self._share_context
            or [at for at, _ in response.self_mask_shares] != seeds
            or [at for at, _ in response.mask_key_shares] != keys
        ):
            raise ProtocolRefused(
                f"{name} did not send one share of the right kind for each site it holds one of."
            )
        for _, share in (*response.self_mask_shares, *response.mask_key_shares):
            parse_share(share)
        self._responses[position] = response

    def finish(self, *, threads: int = 1) -> OpenedSum:
        """Reconstruct what hides the sum, check it against the adverts, and remove it from the sum.

        Args:
            threads: Threads for making masks.

        Raises:
            AbortError: Too few shares came, or some do not give what the adverts committed to. Nobody is
                named, for whose share is wrong is not known.
        """
        self._require(Stage.UNMASK)
        cohort = self._known_cohort()
        self._drop("unmask", cohort.names_at([at for at in self._signatures if at not in self._responses]))
        seeds = self._gather("self_mask_shares", self._alive)
        dropped = self._gather("mask_key_shares", self._dead)
        seed_of = {at: self._open_seed(at, shares) for at, shares in seeds.items()}
        key_of = {at: self._open_mask_key(at, shares) for at, shares in dropped.items()}
        total = self._sum
        if total is None:
            self._abort("Nothing was uploaded.")
        self._stage, self._sum = Stage.OVER, None
        masks = self._masks(seed_of, key_of)
        while batch := list(islice(masks, _KEYS_AT_A_TIME)):
            apply_masks(
                total,
                add=[key for key, sign in batch if sign > 0],
                subtract=[key for key, sign in batch if sign < 0],
                threads=threads,
            )
        return OpenedSum(vector=total, survivors=cohort.names_at(self._alive), dropouts=self.dropouts)

    def _masks(
        self, seed_of: Mapping[int, bytes], key_of: Mapping[int, AgreementKey]
    ) -> Iterator[tuple[bytes, int]]:
        """Each key whose mask is in the sum, with the sign that removes it."""
        cohort, alive = self._known_cohort(), set(self._alive)
        for position, seed in seed_of.items():
            yield cohort.self_mask_key(seed, self._share_context, position), -1
        for gone, key in key_of.items():
            for other in cohort.graph.neighbours(gone):
                if other in alive:
                    agreed = key.agree(cohort.mask_key(other))
                    pairwise = cohort.pairwise_key(agreed, self._share_context, gone, other)
                    # The lower position added the mask, so it is taken away where that one survived.
                    yield pairwise, -1 if other < gone else 1

    def _gather(self, kind: str, owners: Iterable[int]) -> dict[int, dict[int, bytes]]:
        """The shares that came for each owner, by index among the owner's holders."""
        cohort = self._known_cohort()
        index_of = {owner: {at: i for i, at in enumerate(cohort.graph.holders(owner))} for owner in owners}
        shares: dict[int, dict[int, bytes]] = {owner: {} for owner in index_of}
        for position, response in self._responses.items():
            for owner, share in getattr(response, kind):
                shares[owner][index_of[owner][position]] = share
        needed = cohort.graph.design.share_threshold
        fewest = min((len(found) for found in shares.values()), default=needed)
        if fewest < needed:
            self._abort(f"Only {fewest} shares came of a secret that needs {needed}.")
        return shares

    def _open_seed(self, position: int, shares: Mapping[int, bytes]) -> bytes:
        """A survivor's self-mask seed, checked against its commitment."""
        cohort, seed = self._known_cohort(), self._reconstruct(shares)
        commitment = self_mask_commitment(self._context.digest(), cohort.names[position], seed)
        if not hmac.compare_digest(commitment, cohort.commitment(position)):
            self._abort("The shares of a self-mask seed do not give what its site committed to.")
        return seed

    def _open_mask_key(self, position: int, shares: Mapping[int, bytes]) -> AgreementKey:
        """A dropped site's mask key, checked against its advert."""
        key = AgreementKey(self._reconstruct(shares))
        if not hmac.compare_digest(key.public, self._known_cohort().mask_key(position)):
            self._abort("The shares of a mask key do not give the key that its site advertised.")
        return key

    def _reconstruct(self, shares: Mapping[int, bytes]) -> bytes:
        """A secret from its shares, ending the attempt where they do not fit."""
        try:
            return reconstruct_secret(shares, threshold=self._known_cohort().graph.design.share_threshold)
        except AbortError as error:
            self._abort(str(error))

    def _delivery(self, receiver: int) -> ShareDelivery:
        """What one site is sent: the share set, and what its neighbours sealed for it."""
        cohort = self._known_cohort()
        senders = [at for at in cohort.graph.neighbours(receiver) if at in self._sealed]
        return ShareDelivery(
            advert_set=cohort.digest,
            share_set=self._share_set,
            sealed=tuple((sender, self._sealed[sender][receiver]) for sender in senders),
        )

    def _require(self, stage: Stage) -> None:
        """Refuse a call out of order: the caller's mistake."""
        if self._stage is not stage:
            raise AbortError(f"The attempt is at {self._stage.name.lower()}, not at {stage.name.lower()}.")

    def _sender(self, stage: Stage, name: str) -> int:
        """The position of a site that may answer at this stage."""
        self._require(stage)
        if name not in self._position_of:
            raise ProtocolRefused(f"{name} is not in the cohort of this attempt.")
        return self._position_of[name]

    def _needed(self, sites: int) -> int:
        """The sites that must remain of n."""
        return self._parameters.needed_survivors(sites)

    def _require_survivors(self, count: int, sites: int, verb: str) -> None:
        """End the attempt when too few sites are left."""
        if count < (needed := self._needed(sites)):
            self._abort(f"Only {count} sites {verb}; {needed} are needed.")

    def _abort(self, sentence: str) -> NoReturn:
        """End the attempt and drop the masked sum."""
        self._stage, self._sum = Stage.OVER, None
        raise AbortError(sentence)

    def _drop(self, stage: str, names: Iterable[str]) -> None:
        """Note who was lost at a stage."""
        self._dropouts[stage] = tuple(sorted(names))

    def _known_cohort(self) -> Cohort:
        """The cohort; the stage makes sure that there is one."""
        if self._cohort is None:
            raise AbortError("The attempt has no cohort yet.")
        return self._cohort
