"""The site's side of one attempt at secure aggregation, and every reason for which it refuses.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017, with
double masking and the consistency round; neighbourhoods as in `common.aggregation_graph`. The call order is

    advertise() -> share_keys(adverts) -> upload(delivery, update) -> confirm(request) -> unmask(request)

each once. Bytes come from the server, which is not trusted, and the answer goes back to it. A refusal or a
malformed message ends the attempt for this site: its secrets are dropped and it is silent from then on.

Formal guarantee: with at most c sites colluding with the server, everything the server gets from honest
sites in one attempt depends on their updates through one sum only, over at least `smallest_sum` honest
sites (`common.aggregation_graph`; `docs/threat-model.md` gives the argument and the tests).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from client.round_guard import RoundGuard
from common.aggregation_graph import signatures_to_check
from common.errors import DecodeError, ProtocolRefused, ValidationError
from common.key_exchange import KEY_BYTES, AgreementKey, open_sealed, seal, sign, verify
from common.masking import apply_masks
from common.quantization import RingLayout
from common.records import ModelUpdate
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
from common.secret_sharing import SHARE_BYTES, split_secret

__all__ = ["Audit", "RoundGuard", "SecureAggregationClient"]

Audit = Callable[[str, Mapping[str, str | int]], None]
"""Writes one event with its public details to the site's audit log."""


class _Secrets:
    """What exists in memory only, for one attempt."""

    def __init__(self) -> None:
        self.encryption = AgreementKey()
        self.mask = AgreementKey()
        self.seed = os.urandom(32)
        self.sealing: dict[int, bytes] = {}
        self.mask_key_shares: dict[int, bytes] = {}
        self.self_mask_shares: dict[int, bytes] = {}


class SecureAggregationClient:
    """One site in one attempt.

    Args:
        name: The site's name in the roster.
        identity_key: The site's Ed25519 key.
        roster: The approved roster.
        parameters: The approved parameters; the site's own policy may have raised `minimum_cohort`
            only in so far as the plan's hash covers it, so a stricter minimum goes into `minimum_cohort`.
        layout: The approved ring layout.
        context: Plan, model, round, attempt and nonce as this site knows them.
        guard: The persistent record of this site's answers.
        audit: Receives one event per refusal and per answer.
        minimum_cohort: The site's own minimum, where its policy asks for more than the plan.

    Raises:
        ValidationError: The parts do not fit each other.
    """

    def __init__(
        self,
        *,
        name: str,
        identity_key: Ed25519PrivateKey,
        roster: Roster,
        parameters: SecureAggregationParameters,
        layout: RingLayout,
        context: AttemptContext,
        guard: RoundGuard,
        audit: Audit,
        minimum_cohort: int = 0,
    ) -> None:
        """Check that the parts fit; no key is made yet."""
        if roster.member(name).identity_key != identity_key.public_key().public_bytes_raw():
            raise ValidationError(
                f"The identity key of this site is not the one that the roster has for {name}."
            )
        if context.parameters_hash != parameters_hash(parameters, layout):
            raise ValidationError("The attempt's parameters_hash is not that of these parameters and layout.")
        if len(roster) > layout.maximum_sites:
            raise ValidationError(
                f"The roster has {len(roster)} members; the ring layout has room for {layout.maximum_sites}."
            )
        self._name = name
        self._identity = identity_key
        self._roster = roster
        self._parameters = parameters
        self._layout = layout
        self._context = context
        self._context_hash = context.digest()
        self._guard = guard
        self._audit = audit
        self._minimum = max(minimum_cohort, parameters.minimum_cohort)
        self._next = Stage.ADVERTISE
        self._secrets: _Secrets | None = None
        self._own_advert = b""
        self._cohort: Cohort | None = None
        self._position = -1
        self._share_set: tuple[int, ...] = ()
        self._share_context = b""
        self._update: bytes | None = None
        self._lists: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def __repr__(self) -> str:
        """Show the name and the stage alone."""
        return f"SecureAggregationClient({self._name!r}, next={self._next.name})"

    @property
    def number(self) -> int:
        """The attempt's number within its round."""
        return self._context.attempt

    def advertise(self) -> bytes:
        """Begin the attempt: fresh keys, and a signed `Advert` of their public halves.

        Raises:
            ProtocolRefused: The guard does not allow this round, attempt or nonce.
        """
        with self._stage(Stage.ADVERTISE):
            self._check_plan_limits()
            self._guard.begin(self._context.round, self._context.attempt, self._context.nonce)
            self._secrets = _Secrets()
            advert = Advert(
                name=self._name,
                context=self._context,
                encryption_key=self._secrets.encryption.public,
                mask_key=self._secrets.mask.public,
                self_mask_commitment=self_mask_commitment(self._context_hash, self._name, self._secrets.seed),
            )
            self._own_advert = advert.signed(sign(self._identity, "advert", advert.body())).encode()
        return self._own_advert

    def share_keys(self, adverts: bytes) -> bytes:
        """Check an `AdvertList` and return a `ShareList`: this site's secrets, shared and sealed.

        Raises:
            ProtocolRefused: An advert is not this attempt's, not signed by the roster's key, or the cohort
                or the thresholds are not what the parameters ask for.
            DecodeError: The message is malformed.
        """
        with self._stage(Stage.SHARE_KEYS):
            message = AdvertList.decode(adverts)
            self._cohort = cohort = self._check_adverts(message)
            sealed = self._seal_shares(cohort)
        return ShareList(advert_set=cohort.digest, sealed=sealed).encode()

    def upload(
        self, delivery: bytes, update: ModelUpdate, *, threads: int = 1
    ) -> tuple[bytes, NDArray[np.uint32]]:
        """Open a `ShareDelivery`, and return an `UploadHeader` with the masked vector `(length,)`.

        Args:
            delivery: The server's message.
            update: The round's update with the site's public weight, not yet applied to the fields.
            threads: Threads for making masks.

        Raises:
            ProtocolRefused: A share is missing, forged or from elsewhere, too few sites shared keys, or
                this is a retry with another update.
            DecodeError: The message is malformed.
            ValidationError: The update does not fit the layout or has another weight than the roster's.
        """
        with self._stage(Stage.UPLOAD):
            message = ShareDelivery.decode(delivery)
            self._accept_shares(message)
            if update.weight != self._roster.weight(self._name):
                raise ValidationError(
                    f"The update's weight is {update.weight}; the roster gives {self._name} "
                    f"{self._roster.weight(self._name)}."
                )
            vector = self._layout.encode(update.fields, weight=update.weight)
            self._update = _update_digest(update)
            add, subtract = self._mask_keys()
            apply_masks(vector, add=add, subtract=subtract, threads=threads)
            header = UploadHeader(
                position=self._position,
                share_context=self._share_context,
                length=len(vector),
                vector_hash=hashlib.sha256(vector.astype("<u4", copy=False).data).digest(),
            )
            answer = header.signed(sign(self._identity, "upload", header.body())).encode()
        return answer, vector

    def confirm(self, request: bytes) -> bytes:
        """Check a `ConfirmRequest` and return a `Confirmation`; the round is then closed to retries.

        Raises:
            ProtocolRefused: The lists overlap, are incomplete, lack this site, or leave too few.
            DecodeError: The message is malformed.
        """
        with self._stage(Stage.CONFIRM):
            message = ConfirmRequest.decode(request)
            self._check_lists(message.alive, message.dead)
            self._lists = (message.alive, message.dead)
            statement = survivor_statement(self._share_context, message.alive)
            signature = sign(self._identity, "survivors", statement)
        return Confirmation(position=self._position, signature=signature).encode()

    def unmask(self, request: bytes) -> bytes:
        """Check an `UnmaskRequest` and return an `UnmaskResponse`; the attempt is then over.

        Raises:
            ProtocolRefused: The lists are not those confirmed, or too few sites signed the same lists.
            DecodeError: The message is malformed.
        """
        with self._stage(Stage.UNMASK):
            message = UnmaskRequest.decode(request)
            self._check_lists(message.alive, message.dead)
            self._check_confirmed(message)
            secrets, alive = self._own_secrets(), set(message.alive)
            held = sorted(secrets.self_mask_shares)
            answer = UnmaskResponse(
                position=self._position,
                share_context=self._share_context,
                self_mask_shares=tuple((p, secrets.self_mask_shares[p]) for p in held if p in alive),
                mask_key_shares=tuple((p, secrets.mask_key_shares[p]) for p in held if p not in alive),
            ).encode()
        self._secrets = None
        return answer

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        """Run one stage once, in order; record the answer before it leaves; end the attempt on a refusal."""
        name = stage.name.lower()
        public: dict[str, str | int] = {"round": self._context.round, "attempt": self._context.attempt}
        try:
            if self._next is Stage.OVER:
                raise ProtocolRefused(f"This attempt is over for {self._name}; {name} is not answered.")
            if stage < self._next:
                raise ProtocolRefused(f"{self._name} has answered {name} in this attempt already.")
            if stage > self._next:
                raise ProtocolRefused(f"{name} was asked for before {self._next.name.lower()}.")
            yield
            self._guard.answer(self._context.round, self._context.attempt, name, update=self._update)
        except (ProtocolRefused, DecodeError) as error:
            self._next, self._secrets = Stage.OVER, None
            details = {"stage": name, "reason": str(error), "code": error.code}
            self._audit("secure_aggregation_refused", {**public, **details})
            raise
        self._next, self._update = Stage(stage + 1), None
        self._audit("secure_aggregation_answered", {**public, "stage": name})

    def _check_plan_limits(self) -> None:
        """Refuse rounds and attempts beyond those that the failure bounds were computed for."""
        if self._context.round > self._parameters.rounds:
            raise ProtocolRefused(
                f"Round {self._context.round} is beyond the plan's {self._parameters.rounds} rounds."
            )
        if self._context.attempt > self._parameters.attempts:
            raise ProtocolRefused(
                f"Attempt {self._context.attempt} is beyond the plan's {self._parameters.attempts} per round."
            )

    def _check_adverts(self, message: AdvertList) -> Cohort:
        """Check the cohort, and return it with this site's position found."""
        if len(message.adverts) < (needed := self._needed(len(message.adverts))):
            raise ProtocolRefused(f"The cohort has {len(message.adverts)} sites; {needed} must remain.")
        cohort = Cohort.of(message.adverts, self._parameters)
        design = cohort.graph.design
        stated = (message.cohort_threshold, message.share_threshold, message.degree)
        if stated != (design.cohort_threshold, design.share_threshold, design.degree):
            raise ProtocolRefused(
                f"The server works with thresholds {stated[0]} and {stated[1]} and {stated[2]} neighbours; "
                f"the plan asks for {design.cohort_threshold}, {design.share_threshold} and {design.degree}."
            )
        for position, name in enumerate(cohort.names):
            self._check_outline(cohort, position, name)
        if self._own_advert not in message.adverts:
            raise ProtocolRefused(f"The list of adverts does not hold the one that {self._name} sent.")
        self._position = message.adverts.index(self._own_advert)
        keys = {key[at : at + KEY_BYTES] for key in cohort.keys for at in (0, KEY_BYTES)}
        if len(keys) != 2 * len(cohort):
            raise ProtocolRefused("Two adverts hold the same public key.")
        for position in cohort.graph.neighbours(self._position):
            self._verify_advert(cohort.advert(position))
        return cohort

    def _check_outline(self, cohort: Cohort, position: int, name: str) -> None:
        """Refuse an advert of a stranger, or of another attempt."""
        if name not in self._roster:
            raise ProtocolRefused(f"The advert of {name!r} is of no site in the roster.")
        if cohort.contexts[position] == self._context.canonical():
            return
        found = cohort.advert(position).context
        for part, words in (
            ("plan_hash", "another plan"),
            ("parameters_hash", "another parameter set"),
            ("round", "another round"),
            ("attempt", "another attempt"),
            ("nonce", "another nonce"),
            ("model_hash", "another model; the server does not send one model to all"),
        ):
            if getattr(found, part) != getattr(self._context, part):
                raise ProtocolRefused(f"The advert of {name} is for {words}.")

    def _verify_advert(self, advert: Advert) -> None:
        """Refuse an advert that the roster's key did not sign."""
        try:
            verify(self._roster.member(advert.name).identity_key, advert.signature, "advert", advert.body())
        except ProtocolRefused:
            raise ProtocolRefused(
                f"The advert of {advert.name} is not signed by its key in the roster."
            ) from None

    def _seal_shares(self, cohort: Cohort) -> tuple[tuple[int, bytes], ...]:
        """Share both secrets among the holders; keep this site's own shares, seal the others'."""
        secrets, me = self._own_secrets(), self._position
        holders, threshold = cohort.graph.holders(me), cohort.graph.design.share_threshold
        mask_key = split_secret(secrets.mask.private_bytes(), threshold=threshold, shares=len(holders))
        seed = split_secret(secrets.seed, threshold=threshold, shares=len(holders))
        sealed = []
        for index, other in enumerate(holders):
            if other == me:
                secrets.mask_key_shares[me], secrets.self_mask_shares[me] = mask_key[index], seed[index]
                continue
            secrets.sealing[other] = agreed = secrets.encryption.agree(cohort.encryption_key(other))
            key = cohort.sealing_key(agreed, self._context_hash, me, other)
            data = cohort.sealing_data(self._context_hash, me, other)
            sealed.append((other, seal(key, mask_key[index] + seed[index], associated_data=data)))
        return tuple(sealed)

    def _accept_shares(self, message: ShareDelivery) -> None:
        """Check who shared keys, and open the shares of this site's neighbours among them."""
        cohort, secrets, me = self._own_cohort(), self._own_secrets(), self._position
        if message.advert_set != cohort.digest:
            raise ProtocolRefused("The delivery of shares belongs to another list of adverts.")
        shared = set(message.share_set)
        if me not in shared or max(shared) >= len(cohort):
            raise ProtocolRefused("The share set lacks this site, or names one that sent no advert.")
        self._require_survivors(len(shared), "shared keys")
        expected = [position for position in cohort.graph.neighbours(me) if position in shared]
        if [position for position, _ in message.sealed] != expected:
            raise ProtocolRefused(
                "The sealed shares are not those of exactly this site's neighbours in the share set."
            )
        if len(expected) + 1 < cohort.graph.design.share_threshold:
            raise ProtocolRefused(
                f"Only {len(expected) + 1} holders of this site's secrets are left; "
                f"{cohort.graph.design.share_threshold} are needed."
            )
        for position, sealed in message.sealed:
            key = cohort.sealing_key(secrets.sealing[position], self._context_hash, position, me)
            data = cohort.sealing_data(self._context_hash, position, me)
            both = self._open_share(cohort.names[position], key, sealed, data)
            secrets.mask_key_shares[position] = both[:SHARE_BYTES]
            secrets.self_mask_shares[position] = both[SHARE_BYTES:]
        self._share_set = message.share_set
        self._share_context = share_context(self._context, cohort.digest, message.share_set)

    @staticmethod
    def _open_share(name: str, key: bytes, sealed: bytes, data: bytes) -> bytes:
        """Open one sealed pair of shares, or say whose it was said to be."""
        try:
            return open_sealed(key, sealed, associated_data=data)
        except ProtocolRefused:
            raise ProtocolRefused(
                f"The sealed share that the server delivered as {name}'s does not open for this attempt."
            ) from None

    def _mask_keys(self) -> tuple[list[bytes], list[bytes]]:
        """The keys of the masks that this site adds (its own first) and subtracts."""
        cohort, secrets, me = self._own_cohort(), self._own_secrets(), self._position
        add = [cohort.self_mask_key(secrets.seed, self._share_context, me)]
        subtract: list[bytes] = []
        shared = set(self._share_set)
        for other in cohort.graph.neighbours(me):
            if other in shared:
                agreed = secrets.mask.agree(cohort.mask_key(other))
                key = cohort.pairwise_key(agreed, self._share_context, me, other)
                (add if me < other else subtract).append(key)
        return add, subtract

    def _check_lists(self, alive: Sequence[int], dead: Sequence[int]) -> None:
        """Refuse lists that do not split the share set with enough alive, this site among them."""
        if set(alive) & set(dead):
            raise ProtocolRefused("A site is listed as both alive and dead.")
        if set(alive) | set(dead) != set(self._share_set):
            raise ProtocolRefused(
                "The alive and dead lists together are not the set of sites that shared keys."
            )
        if self._position not in alive:
            raise ProtocolRefused(f"{self._name} uploaded, and is not among the survivors.")
        self._require_survivors(len(alive), "survive")

    def _check_confirmed(self, message: UnmaskRequest) -> None:
        """Refuse to unmask lists that were not confirmed, by this site and by enough others."""
        cohort, alive = self._own_cohort(), set(message.alive)
        if (message.alive, message.dead) != self._lists:
            raise ProtocolRefused("The survivors to unmask are not those that this site confirmed.")
        sites, signers = len(cohort), [position for position, _ in message.signatures]
        if not alive.issuperset(signers):
            raise ProtocolRefused("A confirmation is of a site that is not among the survivors.")
        needed = cohort.graph.design.cohort_threshold
        if not cohort.graph.design.full:
            # Above the limit only neighbours' adverts were verified, so real sites are counted here.
            needed = max(needed, self._needed(sites))
        if len(signers) < needed:
            raise ProtocolRefused(f"{len(signers)} sites confirmed the survivors; {needed} are needed.")
        statement = survivor_statement(self._share_context, message.alive)
        count = signatures_to_check(len(signers), needed, sites, self._parameters)
        for position, signature in random.SystemRandom().sample(message.signatures, count):
            name = cohort.names[position]
            try:
                verify(self._roster.member(name).identity_key, signature, "survivors", statement)
            except ProtocolRefused:
                raise ProtocolRefused(
                    f"The confirmation of {name} is not over the survivors that this site was shown."
                ) from None

    def _require_survivors(self, count: int, verb: str) -> None:
        """Refuse when fewer sites are left than max(t, c + 2, this site's minimum)."""
        if count < (needed := self._needed(len(self._own_cohort()))):
            raise ProtocolRefused(f"Only {count} sites {verb}; {needed} are needed.")

    def _needed(self, sites: int) -> int:
        """The sites that must remain of n, by the plan and by this site's own minimum."""
        return max(self._parameters.needed_survivors(sites), self._minimum)

    def _own_secrets(self) -> _Secrets:
        """The attempt's secrets; there are none after its end."""
        if self._secrets is None:
            raise ProtocolRefused("This attempt has no secrets any more.")
        return self._secrets

    def _own_cohort(self) -> Cohort:
        """The cohort that `share_keys` accepted."""
        if self._cohort is None:
            raise ProtocolRefused("This attempt has no cohort yet.")
        return self._cohort


def _update_digest(update: ModelUpdate) -> bytes:
    """A digest that tells two updates of one round apart; it stays at the site."""
    digest = hashlib.sha256(repr(update.weight).encode())
    for name in sorted(update.fields):
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256(np.ascontiguousarray(update.fields[name]).data).digest())
    return digest.digest()
