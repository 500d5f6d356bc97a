"""The server as the adversary: each attack on a real client, the refusal, and its line in the audit log."""

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.secure_aggregation import SecureAggregationClient
from common.errors import DecodeError, ProtocolRefused
from common.key_exchange import AgreementKey, seal, sign
from common.masking import apply_masks
from common.records import ModelUpdate
from common.secagg_cohort import Cohort
from common.secagg_messages import (
    Advert,
    AdvertList,
    ConfirmRequest,
    ShareDelivery,
    ShareList,
    UnmaskRequest,
    UnmaskResponse,
    survivor_statement,
)
from common.secagg_parameters import SecureAggregationParameters
from common.secret_sharing import reconstruct_secret


def refused(federation, name, words, call, *arguments):
    """Check that the call is refused for this reason, audited, and that the attempt is over for the site."""
    before = len(federation.refusals(name))
    with pytest.raises((ProtocolRefused, DecodeError), match=words) as caught:
        call(*arguments)
    assert federation.refusals(name)[before:] == [str(caught.value)]
    client = call.__self__
    assert client._secrets is None
    with pytest.raises(ProtocolRefused, match="is over for"):
        client.unmask(b"")


def altered_adverts(message, change):
    """An advert list in which `change` (a function of the decoded adverts) replaced the adverts."""
    decoded = AdvertList.decode(message)
    adverts = change([Advert.decode(advert) for advert in decoded.adverts])
    return dataclasses.replace(decoded, adverts=tuple(advert.encode() for advert in adverts)).encode()


# --- keys and adverts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["encryption_key", "mask_key", "self_mask_commitment"])
def test_swapped_keys(make_federation, key):
    federation = make_federation(4)
    attempt = federation.attempt()

    def swap(adverts):
        adverts[1] = dataclasses.replace(adverts[1], **{key: AgreementKey().public})
        return adverts

    message = altered_adverts(attempt.adverts(), swap)
    refused(federation, "s000", "s001 is not signed by its key", attempt.clients["s000"].share_keys, message)


def test_keys_signed_by_another_member(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()

    def resign(adverts):
        body = adverts[1].body()
        adverts[1] = adverts[1].signed(sign(federation.keys["s002"], "advert", body))
        return adverts

    message = altered_adverts(attempt.adverts(), resign)
    refused(federation, "s000", "s001 is not signed by its key", attempt.clients["s000"].share_keys, message)


def test_unsigned_keys(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    message = altered_adverts(
        attempt.adverts(), lambda adverts: [adverts[0], *(a.signed(bytes(64)) for a in adverts[1:])]
    )
    refused(federation, "s000", "is not signed by its key", attempt.clients["s000"].share_keys, message)


def test_a_site_that_is_not_in_the_roster(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    invented = Ed25519PrivateKey.generate()

    def add(adverts):
        advert = dataclasses.replace(
            adverts[0], name="zzz", encryption_key=AgreementKey().public, mask_key=AgreementKey().public
        )
        return [*adverts, advert.signed(sign(invented, "advert", advert.body()))]

    message = altered_adverts(attempt.adverts(), add)
    message = dataclasses.replace(
        AdvertList.decode(message), cohort_threshold=4, share_threshold=4, degree=4
    ).encode()
    refused(
        federation, "s000", "'zzz' is of no site in the roster", attempt.clients["s000"].share_keys, message
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nonce": b"o" * 32}, "s001 is for another nonce"),
        ({"attempt": 2}, "s001 is for another attempt"),
        ({"round": 2}, "s001 is for another round"),
        ({"plan_hash": b"q" * 32}, "s001 is for another plan"),
        ({"model_hash": b"n" * 32}, "s001 is for another model; the server does not send one model to all"),
        (
            {"parameters": SecureAggregationParameters(collusion_tolerance=0)},
            "s001 is for another parameter set",
        ),
    ],
)
def test_an_advert_of_another_attempt_model_or_parameter_set(make_federation, changes, words):
    # The other site was shown something else and signed what it saw: the server cannot hide the difference.
    federation = make_federation(4)
    attempt = federation.attempt(federation.context(nonce=b"n" * 32))
    parameters = changes.get("parameters", federation.parameters)
    elsewhere = federation.context(nonce=b"n" * 32)
    elsewhere = federation.context(**{"nonce": elsewhere.nonce, **changes})
    adverts = attempt.adverts()
    other = federation.client("s001", elsewhere, parameters=parameters, guard=_NoGuard())
    advert = Advert.decode(other.advertise())

    message = altered_adverts(adverts, lambda found: [found[0], advert, *found[2:]])
    refused(federation, "s000", words, attempt.clients["s000"].share_keys, message)


def test_a_replayed_advert_of_an_earlier_attempt(make_federation):
    federation = make_federation(4)
    old = AdvertList.decode(federation.attempt().adverts())
    attempt = federation.attempt(federation.context(attempt=2))
    message = AdvertList.decode(attempt.adverts())
    replay = (message.adverts[0], old.adverts[1], *message.adverts[2:])
    message = dataclasses.replace(message, adverts=replay).encode()
    refused(federation, "s000", "another attempt", attempt.clients["s000"].share_keys, message)


def test_a_cohort_without_the_site_itself(make_federation):
    federation = make_federation(5)
    attempt = federation.attempt()
    client = attempt.clients.pop("s000")
    client.advertise()
    refused(federation, "s000", "does not hold the one that s000 sent", client.share_keys, attempt.adverts())


def test_one_key_in_two_adverts(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()

    def copy(adverts):
        advert = dataclasses.replace(adverts[2], mask_key=adverts[1].mask_key)
        return [
            *adverts[:2],
            advert.signed(sign(federation.keys["s002"], "advert", advert.body())),
            adverts[3],
        ]

    message = altered_adverts(attempt.adverts(), copy)
    refused(federation, "s000", "hold the same public key", attempt.clients["s000"].share_keys, message)


def test_one_site_listed_twice(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    message = altered_adverts(attempt.adverts(), lambda adverts: [adverts[0], *adverts])
    refused(federation, "s000", "names a site twice", attempt.clients["s000"].share_keys, message)


def test_a_key_of_small_order_from_a_colluding_site(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()

    def weaken(adverts):
        advert = dataclasses.replace(adverts[1], encryption_key=bytes(32))
        return [
            adverts[0],
            advert.signed(sign(federation.keys["s001"], "advert", advert.body())),
            *adverts[2:],
        ]

    message = altered_adverts(attempt.adverts(), weaken)
    refused(federation, "s000", "small order", attempt.clients["s000"].share_keys, message)


# --- cohort and thresholds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "own", "needed"),
    [
        ({"collusion_tolerance": 1, "minimum_cohort": 5}, 0, 5),
        ({"collusion_tolerance": 1}, 6, 6),
        ({"collusion_tolerance": 5}, 0, 7),
    ],
)
def test_a_cohort_below_the_minimum(make_federation, parameters, own, needed):
    federation = make_federation(8, **parameters)
    context = federation.context()
    client = federation.client("s000", context, minimum_cohort=own)
    adverts = [client.advertise()]
    adverts += [federation.client(name, context).advertise() for name in federation.names[1:4]]
    message = AdvertList(cohort_threshold=3, share_threshold=3, degree=3, adverts=tuple(adverts)).encode()
    refused(federation, "s000", f"has 4 sites; {needed} must remain", client.share_keys, message)


@pytest.mark.parametrize(
    "change", [{"cohort_threshold": 2}, {"share_threshold": 2}, {"cohort_threshold": 4}, {"degree": 2}]
)
def test_a_lowered_threshold_or_degree(make_federation, change):
    federation = make_federation(4)
    attempt = federation.attempt()
    message = dataclasses.replace(AdvertList.decode(attempt.adverts()), **change).encode()
    refused(federation, "s000", "the plan asks for 3, 3 and 3", attempt.clients["s000"].share_keys, message)


# --- shares -----------------------------------------------------------------------------------------------


def delivery_to(attempt, name):
    return ShareDelivery.decode(attempt.deliveries()[name])


@pytest.mark.parametrize("part", [0, 20, -1])
def test_a_forged_share(make_federation, part):
    federation = make_federation(4)
    attempt = federation.attempt()
    delivery = delivery_to(attempt, "s000")
    position, sealed = delivery.sealed[1]
    forged = bytearray(sealed)
    forged[part] ^= 1
    items = (delivery.sealed[0], (position, bytes(forged)), delivery.sealed[2])
    message = dataclasses.replace(delivery, sealed=items).encode()
    call = attempt.clients["s000"].upload
    refused(
        federation, "s000", "delivered as s002's does not open", call, message, federation.updates["s000"]
    )


def test_a_share_sealed_by_the_server_itself(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    delivery = delivery_to(attempt, "s000")
    position, sealed = delivery.sealed[0]
    fake = seal(b"k" * 32, bytes(len(sealed) - 28), associated_data=b"")
    message = dataclasses.replace(delivery, sealed=((position, fake), *delivery.sealed[1:])).encode()
    call = attempt.clients["s000"].upload
    refused(federation, "s000", "does not open", call, message, federation.updates["s000"])


def test_shares_of_two_senders_exchanged(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    delivery = delivery_to(attempt, "s000")
    (one, first), (other, second), rest = delivery.sealed
    message = dataclasses.replace(delivery, sealed=((one, second), (other, first), rest)).encode()
    call = attempt.clients["s000"].upload
    refused(federation, "s000", "does not open", call, message, federation.updates["s000"])


def test_a_share_meant_for_another_receiver(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    deliveries = attempt.deliveries()
    mine, theirs = (ShareDelivery.decode(deliveries[name]) for name in ("s000", "s001"))
    # Position 2 sealed one box for s000 and one for s001.
    stolen = dict(theirs.sealed)[2]
    items = tuple((position, stolen if position == 2 else box) for position, box in mine.sealed)
    message = dataclasses.replace(mine, sealed=items).encode()
    call = attempt.clients["s000"].upload
    refused(federation, "s000", "s002's does not open", call, message, federation.updates["s000"])


def test_a_share_from_a_site_that_saw_other_adverts(make_federation):
    # The server shows s003 a cohort of its own; what s003 seals is bound to that cohort's hash.
    federation = make_federation(6, minimum_cohort=4)
    attempt = federation.attempt()
    full = attempt.adverts()
    decoded = AdvertList.decode(full)
    smaller = dataclasses.replace(
        decoded, adverts=decoded.adverts[:5], cohort_threshold=4, share_threshold=4, degree=4
    ).encode()
    split = ShareList.decode(attempt.clients["s003"].share_keys(smaller))
    others = {
        name: ShareList.decode(attempt.clients[name].share_keys(full))
        for name in federation.names
        if name != "s003"
    }
    mine = [(number, dict(others[f"s{number:03d}"].sealed)[0]) for number in (1, 2, 4, 5)]
    mine.append((3, dict(split.sealed)[0]))
    message = ShareDelivery(
        advert_set=others["s000"].advert_set, share_set=tuple(range(6)), sealed=tuple(sorted(mine))
    ).encode()
    call = attempt.clients["s000"].upload
    refused(federation, "s000", "s003's does not open", call, message, federation.updates["s000"])


@pytest.mark.parametrize(
    ("share_set", "positions", "words"),
    [
        ((0, 1, 2, 3), (1, 2), "exactly this site's neighbours"),
        ((0, 1, 2), (1, 2, 3), "exactly this site's neighbours"),
        ((1, 2, 3), (1, 2, 3), "lacks this site"),
        ((0, 1, 2, 9), (1, 2), "sent no advert"),
        ((0, 1), (1,), "Only 2 sites shared keys; 3 are needed"),
        ((), (), "lacks this site"),
    ],
)
def test_a_share_set_that_does_not_fit(make_federation, share_set, positions, words):
    federation = make_federation(4)
    attempt = federation.attempt()
    delivery = delivery_to(attempt, "s000")
    boxes = dict(delivery.sealed)
    items = tuple((position, boxes[position]) for position in positions)
    message = dataclasses.replace(delivery, share_set=share_set, sealed=items).encode()
    refused(federation, "s000", words, attempt.clients["s000"].upload, message, federation.updates["s000"])


def test_a_delivery_for_another_advert_list(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    message = dataclasses.replace(delivery_to(attempt, "s000"), advert_set=bytes(32)).encode()
    call = attempt.clients["s000"].upload
    refused(federation, "s000", "another list of adverts", call, message, federation.updates["s000"])


def test_different_share_sets_make_masks_that_do_not_cancel(make_federation):
    # s000 is told that s003 never shared; its masks with s001 and s002 are then unrelated to theirs.
    federation = make_federation(4)
    attempt = federation.attempt()
    deliveries = attempt.deliveries()
    split = ShareDelivery.decode(deliveries["s000"])
    split = dataclasses.replace(split, share_set=(0, 1, 2), sealed=split.sealed[:2])
    clients = attempt.clients
    _, vector = clients["s000"].upload(split.encode(), federation.updates["s000"])
    _, other = clients["s001"].upload(deliveries["s001"], federation.updates["s001"])
    one, two = (set().union(*clients[name]._mask_keys()) for name in ("s000", "s001"))
    assert not one & two
    assert vector.shape == other.shape


# --- survivor lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alive", "dead", "words"),
    [
        ((0, 1, 2, 3, 4), (4, 5), "both alive and dead"),
        ((0, 1, 2, 3, 4), (), "are not the set of sites that shared keys"),
        ((0, 1, 2, 3, 4, 5, 6), (), "are not the set of sites that shared keys"),
        ((1, 2, 3, 4, 5), (0,), "s000 uploaded, and is not among the survivors"),
        ((0, 1, 2), (3, 4, 5), "Only 3 sites survive; 4 are needed"),
        ((), (0, 1, 2, 3, 4, 5), "not among the survivors"),
    ],
)
@pytest.mark.parametrize("stage", ["confirm", "unmask"])
def test_survivor_lists_that_do_not_split_the_share_set(make_federation, stage, alive, dead, words):
    federation = make_federation(6)
    attempt = federation.attempt()
    client = attempt.clients["s000"]
    request = attempt.confirm_request()
    if stage == "confirm":
        message = ConfirmRequest(alive=alive, dead=dead).encode()
        refused(federation, "s000", words, client.confirm, message)
    else:
        genuine = UnmaskRequest.decode(attempt.unmask_request(confirm_request=request))
        message = dataclasses.replace(genuine, alive=alive, dead=dead).encode()
        refused(federation, "s000", words, client.unmask, message)


def test_survivors_changed_between_confirm_and_unmask(make_federation):
    federation = make_federation(6)
    attempt = federation.attempt()
    genuine = UnmaskRequest.decode(attempt.unmask_request())
    message = dataclasses.replace(genuine, alive=(0, 1, 2, 3, 4), dead=(5,)).encode()
    words = "not those that this site confirmed"
    refused(federation, "s000", words, attempt.clients["s000"].unmask, message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda signatures: signatures[:3], "3 sites confirmed the survivors; 4 are needed"),
        (lambda signatures: (*signatures[:5], (5, bytes(64))), "confirmation of s005 is not over"),
        (lambda signatures: (*signatures[:5], (5, signatures[4][1])), "confirmation of s005 is not over"),
        (lambda signatures: (*signatures, (6, bytes(64))), "not among the survivors"),
        (lambda signatures: (*signatures, signatures[5]), "twice or out of order"),
    ],
)
def test_confirmations_that_are_missing_or_forged(make_federation, change, words):
    federation = make_federation(6)
    attempt = federation.attempt()
    genuine = UnmaskRequest.decode(attempt.unmask_request())
    message = dataclasses.replace(genuine, signatures=change(genuine.signatures)).encode()
    refused(federation, "s000", words, attempt.clients["s000"].unmask, message)


def test_confirmations_of_an_earlier_attempt(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    genuine = UnmaskRequest.decode(attempt.unmask_request())
    old = survivor_statement(bytes(32), genuine.alive)
    replayed = tuple(
        (position, sign(federation.keys[f"s{position:03d}"], "survivors", old))
        for position, _ in genuine.signatures
    )
    message = dataclasses.replace(genuine, signatures=replayed).encode()
    refused(federation, "s000", "is not over the survivors", attempt.clients["s000"].unmask, message)


# --- once, in order, and never again ----------------------------------------------------------------------


def test_a_second_unmask_request(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    request = attempt.unmask_request()
    client = attempt.clients["s000"]
    client.unmask(request)
    with pytest.raises(ProtocolRefused, match="is over for s000; unmask is not answered"):
        client.unmask(request)
    assert "unmask is not answered" in federation.refusals("s000")[-1]


@pytest.mark.parametrize("stage", ["advertise", "share_keys", "upload", "confirm"])
def test_a_stage_asked_for_twice(make_federation, stage):
    federation = make_federation(4)
    attempt = federation.attempt()
    client = attempt.clients["s000"]
    adverts = attempt.adverts()
    arguments = ()
    if stage != "advertise":
        deliveries, arguments = attempt.deliveries(adverts=adverts), (adverts,)
        if stage != "share_keys":
            request = attempt.confirm_request(deliveries=deliveries)
            arguments = (deliveries["s000"], federation.updates["s000"])
            if stage == "confirm":
                attempt.unmask_request(confirm_request=request)
                arguments = (request,)
    refused(federation, "s000", f"has answered {stage} in this attempt", getattr(client, stage), *arguments)


def test_stages_out_of_order(make_federation):
    federation = make_federation(4)
    attempt = federation.attempt()
    attempt.adverts()
    words = "confirm was asked for before share_keys"
    refused(federation, "s000", words, attempt.clients["s000"].confirm, b"")


def test_a_feigned_abort_after_confirm(make_federation):
    # The server pretends that the sum was lost, and asks for another attempt without one site, to subtract.
    federation = make_federation(6)
    federation.attempt().unmask_request()
    client = federation.client("s000", federation.context(attempt=2))
    refused(federation, "s000", "Round 1 was confirmed already", client.advertise)
    federation.attempt(federation.context(round=2)).run()


def test_a_retry_that_masks_another_update(make_federation):
    federation = make_federation(4)
    federation.attempt().confirm_request()
    retry = federation.attempt(federation.context(attempt=2))
    delivery = delivery_to(retry, "s000")
    update = federation.updates["s000"]
    other = ModelUpdate(fields={**update.fields, "delta": update.fields["delta"] + 1}, weight=1.0)
    words = "must mask the update of the first attempt"
    refused(federation, "s000", words, retry.clients["s000"].upload, delivery.encode(), other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": 1, "attempt": 3}, "rounds only grow"),
        ({"round": 2, "attempt": 2}, "attempts only grow"),
        ({"round": 2, "attempt": 1}, "attempts only grow"),
        ({"round": 3, "nonce": b"n" * 32}, "nonce of round 3, attempt 1 was used before"),
        ({"round": 101}, "beyond the plan's 100 rounds"),
        ({"round": 3, "attempt": 4}, "beyond the plan's 3 per round"),
    ],
)
def test_old_rounds_old_attempts_and_repeated_nonces(make_federation, changes, words):
    federation = make_federation(4)
    federation.client("s000", federation.context(round=2, attempt=2, nonce=b"n" * 32)).advertise()
    client = federation.client("s000", federation.context(**changes))
    refused(federation, "s000", words, client.advertise)


@pytest.mark.parametrize("stage", ["share_keys", "upload", "confirm", "unmask"])
def test_garbage_is_refused_and_audited(make_federation, stage):
    federation = make_federation(4)
    attempt = federation.attempt()
    client = attempt.clients["s000"]
    steps = {
        "share_keys": attempt.adverts,
        "upload": attempt.deliveries,
        "confirm": attempt.confirm_request,
        "unmask": attempt.unmask_request,
    }
    steps[stage]()
    arguments = (b"garbage", federation.updates["s000"]) if stage == "upload" else (b"garbage",)
    refused(federation, "s000", "does not begin as", getattr(client, stage), *arguments)


# --- the attack that confirm is there for -----------------------------------------------------------------


class Unconfirmed(SecureAggregationClient):
    """A client with the consistency round taken out; for this attack only."""

    def unmask(self, request):
        message = UnmaskRequest.decode(request)
        self._lists = (message.alive, message.dead)
        return super().unmask(request)

    def _check_confirmed(self, message):
        """Take any survivor lists, as in the protocol without signatures."""


class _NoGuard:
    """A guard that remembers nothing, for sites that the server shows something else."""

    def begin(self, *arguments, **named):
        """Allow everything."""

    def answer(self, *arguments, **named):
        """Allow everything."""


TARGET = (0, 1, 2, 3)
"""The four sites whose sum the server wants to open, of eight, at a threshold of five."""


def split_survivors(site):
    """Survivor lists of at least five for each site, such that every target is alive and every other site is
    dead in at least five of the eight."""
    others = [4, 5, 6, 7]
    spared = site if site in others else others[site % 4]
    return (*TARGET, spared), tuple(other for other in others if other != spared)


def split_views(attempt):
    """Show every site its own survivor lists, and return the shares of those that answer."""
    signatures = {}
    for number, client in enumerate(attempt.clients.values()):
        alive, dead = split_survivors(number)
        client.confirm(ConfirmRequest(alive=alive, dead=dead).encode())
        statement = survivor_statement(client._share_context, alive)
        signatures[number] = sign(attempt.federation.keys[f"s{number:03d}"], "survivors", statement)
    for number, client in enumerate(attempt.clients.values()):
        alive, dead = split_survivors(number)
        shown = tuple((position, signatures[position]) for position in alive)
        request = UnmaskRequest(alive=alive, dead=dead, signatures=shown)
        yield number, client, request.encode()


def test_without_confirm_a_sum_of_four_is_opened_at_a_threshold_of_five(make_federation):
    federation = make_federation(8, client_class=Unconfirmed)
    attempt = federation.attempt()
    attempt.confirm_request()
    cohort = next(iter(attempt.clients.values()))._cohort
    assert cohort.graph.design.share_threshold == 5
    context = next(iter(attempt.clients.values()))._share_context
    seeds, keys = {u: {} for u in range(8)}, {u: {} for u in range(8)}
    for number, client, request in split_views(attempt):
        response = UnmaskResponse.decode(client.unmask(request))
        for owner, share in response.self_mask_shares:
            seeds[owner][number] = share
        for owner, share in response.mask_key_shares:
            keys[owner][number] = share
    opened = sum_of_target(attempt, cohort, context, seeds, keys)
    assert np.array_equal(opened, federation.expected([f"s{number:03d}" for number in TARGET]))


def sum_of_target(attempt, cohort: Cohort, context, seeds, keys):
    """What the server computes from the shares: the sum of the four targets alone."""
    total = np.zeros(attempt.federation.layout.length, np.uint32)
    for number in TARGET:
        total += attempt.vectors[f"s{number:03d}"]
        seed = reconstruct_secret(seeds[number], threshold=5)
        apply_masks(total, subtract=[cohort.self_mask_key(seed, context, number)])
    for other in (4, 5, 6, 7):
        key = AgreementKey(reconstruct_secret(keys[other], threshold=5))
        for number in TARGET:
            agreed = key.agree(cohort.mask_key(number))
            apply_masks(total, subtract=[cohort.pairwise_key(agreed, context, number, other)])
    return total


def test_with_confirm_every_site_refuses_the_split(make_federation):
    federation = make_federation(8)
    attempt = federation.attempt()
    attempt.confirm_request()
    for number, client, request in split_views(attempt):
        words = "is not over the survivors that this site was shown"
        refused(federation, f"s{number:03d}", words, client.unmask, request)


# --- the sparse graph -------------------------------------------------------------------------------------


def test_on_the_sparse_graph_every_neighbour_s_advert_is_verified(make_federation):
    # The placement depends on the advert set, so the server may forge until the victim is no neighbour; then
    # the victim shares nothing with the forged site and never answers for it.
    federation = make_federation(40, full_graph_limit=8)
    attempt = federation.attempt()
    adverts = AdvertList.decode(attempt.adverts())
    outcomes = set()
    for number in range(1, 13):
        forged = dataclasses.replace(Advert.decode(adverts.adverts[number]), mask_key=AgreementKey().public)
        changed = (*adverts.adverts[:number], forged.encode(), *adverts.adverts[number + 1 :])
        cohort = Cohort.of(changed, federation.parameters)
        name = f"s{(number + 20):03d}"
        client, victim = attempt.clients[name], number + 20
        message = dataclasses.replace(adverts, adverts=changed).encode()
        try:
            answer = ShareList.decode(client.share_keys(message))
            outcomes.add((number in cohort.graph.neighbours(victim), "accepted"))
            assert number not in [receiver for receiver, _ in answer.sealed]
        except ProtocolRefused:
            outcomes.add((number in cohort.graph.neighbours(victim), "refused"))
            assert "is not signed by its key" in federation.refusals(name)[0]
    assert outcomes == {(True, "refused"), (False, "accepted")}


def test_on_the_sparse_graph_too_many_forged_confirmations_are_found(make_federation):
    federation = make_federation(40, full_graph_limit=8)
    attempt = federation.attempt()
    genuine = UnmaskRequest.decode(attempt.unmask_request())
    half = tuple((at, signature if at < 20 else bytes(64)) for at, signature in genuine.signatures)
    message = dataclasses.replace(genuine, signatures=half).encode()
    for name in ("s000", "s001", "s002"):
        refused(federation, name, "is not over the survivors", attempt.clients[name].unmask, message)


def test_on_the_sparse_graph_the_minimum_is_counted_in_confirmations(make_federation):
    federation = make_federation(40, full_graph_limit=8, minimum_cohort=30)
    attempt = federation.attempt()
    genuine = UnmaskRequest.decode(attempt.unmask_request())
    message = dataclasses.replace(genuine, signatures=genuine.signatures[:29]).encode()
    words = "29 sites confirmed the survivors; 30 are needed"
    refused(federation, "s000", words, attempt.clients["s000"].unmask, message)


def test_on_the_sparse_graph_a_share_set_without_the_site_s_neighbours_is_refused(make_federation):
    # Enough sites shared keys, but the server left out so many neighbours that those left could be split.
    federation = make_federation(40, full_graph_limit=8)
    attempt = federation.attempt()
    delivery = delivery_to(attempt, "s000")
    design = attempt.server.design
    gone = set(attempt.server._cohort.graph.neighbours(0)[: design.degree + 2 - design.share_threshold])
    left = tuple(position for position in range(40) if position not in gone)
    assert len(left) >= federation.parameters.needed_survivors(40)
    boxes = tuple(item for item in delivery.sealed if item[0] not in gone)
    message = dataclasses.replace(delivery, share_set=left, sealed=boxes).encode()
    words = f"Only {design.share_threshold - 1} holders of this site's secrets are left"
    refused(federation, "s000", words, attempt.clients["s000"].upload, message, federation.updates["s000"])
