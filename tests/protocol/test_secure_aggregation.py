"""Honest parties: the opened sum is exact in the ring whatever drops out, or the attempt aborts."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import AbortError, DecodeError, ProtocolRefused, ValidationError
from common.records import ModelUpdate
from common.secagg_messages import UnmaskResponse
from common.secret_sharing import PRIME

STAGES = ("advertise", "share_keys", "upload", "confirm", "unmask")


def test_the_sum_is_opened_and_decodes(make_federation):
    federation = make_federation(5)
    opened = federation.attempt().run()
    assert np.array_equal(opened.vector, federation.expected(federation.names))
    assert federation.layout.decode(opened.vector)["num_examples"].tolist() == [15.0]
    assert opened.survivors == tuple(federation.names)
    assert all(not names for names in opened.dropouts.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_dropout_at_any_stage_is_survived_and_reported(make_federation, stage):
    federation = make_federation(6)
    opened = federation.attempt().run(**{stage: ["s002"]})
    inside = stage in ("confirm", "unmask")
    survivors = [name for name in federation.names if inside or name != "s002"]
    assert opened.survivors == tuple(survivors)
    assert np.array_equal(opened.vector, federation.expected(survivors))
    assert opened.dropouts == {each: (("s002",) if each == stage else ()) for each in STAGES}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sites=st.integers(2, 9),
    colluding=st.integers(0, 3),
    lost=st.lists(st.tuples(st.sampled_from(STAGES), st.integers(0, 8)), max_size=5),
    length=st.sampled_from([1, 3, 40]),
)
def test_the_sum_is_exact_or_the_attempt_aborts(make_federation, sites, colluding, lost, length):
    federation = make_federation(sites, collusion_tolerance=colluding, minimum_cohort=2, length=length)
    dropped = {stage: [f"s{number:03d}" for at, number in lost if at == stage] for stage in STAGES}
    attempt = federation.attempt()
    gone, uploaded = set(), None
    for stage in STAGES:
        gone |= set(dropped[stage]) & set(federation.names)
        if stage == "upload":
            uploaded = [name for name in federation.names if name not in gone]
    first_gone = set(dropped["advertise"]) & set(federation.names)
    advertised = sites - len(first_gone)
    threshold = federation.parameters.cohort_threshold(advertised)
    enough = len(uploaded) >= federation.parameters.needed_survivors(advertised)
    enough = enough and sites - len(gone) >= threshold
    if enough:
        opened = attempt.run(**dropped)
        assert opened.survivors == tuple(uploaded)
        assert np.array_equal(opened.vector, federation.expected(uploaded))
    else:
        with pytest.raises(AbortError):
            attempt.run(**dropped)


@pytest.mark.parametrize("lost", [{}, {"share_keys": 2, "upload": 3, "confirm": 1, "unmask": 1}])
def test_the_sparse_graph_opens_the_same_sum(make_federation, lost):
    federation = make_federation(40, full_graph_limit=8)
    rng = np.random.default_rng(4)
    dropped, left = {}, list(federation.names)
    for stage, count in lost.items():
        dropped[stage] = list(rng.choice(left, count, replace=False))
        left = [name for name in left if name not in dropped[stage]]
    attempt = federation.attempt()
    opened = attempt.run(**dropped)
    assert attempt.server._cohort.graph.design.degree < 39
    assert np.array_equal(opened.vector, federation.expected(opened.survivors))
    assert len(opened.survivors) == 40 - len(dropped.get("share_keys", ())) - len(dropped.get("upload", ()))


def test_a_late_upload_of_a_site_declared_dead_stays_hidden(make_federation):
    federation = make_federation(5)
    attempt = federation.attempt()
    deliveries = attempt.deliveries()
    late = attempt.clients.pop("s004")
    _, vector = late.upload(deliveries["s004"], federation.updates["s004"])
    opened = attempt.finish(
        unmask_request=attempt.unmask_request(confirm_request=attempt.confirm_request(deliveries=deliveries))
    )
    assert opened.survivors == ("s000", "s001", "s002", "s003")
    assert not np.array_equal(vector, federation.expected(["s004"]))


def test_threads_and_long_vectors_agree(make_federation):
    federation = make_federation(4, length=70_001)
    attempt = federation.attempt()
    opened = attempt.finish(["s001"], attempt.unmask_request(), threads=2)
    assert np.array_equal(opened.vector, federation.expected(federation.names))


def test_a_wrong_share_aborts_and_names_nobody(make_federation):
    for dead in ((), ("s005",)):
        federation = make_federation(6)
        attempt = federation.attempt()
        request = attempt.unmask_request(confirm_request=attempt.confirm_request(lost=dead))
        for name, client in attempt.clients.items():
            response = UnmaskResponse.decode(client.unmask(request))
            if name == "s001":
                response = _spoil(response, "mask_key_shares" if dead else "self_mask_shares")
            attempt.server.add_unmask(name, response.encode())
        with pytest.raises(AbortError, match=r"do not give|do not fit") as caught:
            attempt.server.finish()
        assert "s00" not in str(caught.value)


def _spoil(response, kind):
    items = getattr(response, kind)
    position, share = items[0]
    wrong = ((int.from_bytes(share) + 1) % PRIME).to_bytes(33)
    parts = {name: getattr(response, name) for name in response.__slots__}
    return UnmaskResponse(**{**parts, kind: ((position, wrong), *items[1:])})


def test_below_the_threshold_the_attempt_ends_cleanly(make_federation):
    federation = make_federation(6)
    attempt = federation.attempt()
    request = attempt.unmask_request()
    with pytest.raises(AbortError, match="Only 3 shares came of a secret that needs 4"):
        attempt.finish(["s000", "s001", "s002"], request)
    with pytest.raises(AbortError, match="at over, not at unmask"):
        attempt.server.finish()


def test_a_retry_before_confirm_opens_the_same_updates(make_federation):
    federation = make_federation(5)
    first = federation.attempt()
    first.confirm_request()
    second = federation.attempt(federation.context(attempt=2), names=federation.names[:4])
    opened = second.run()
    assert np.array_equal(opened.vector, federation.expected(federation.names[:4]))
    assert not np.array_equal(first.vectors["s001"], second.vectors["s001"])


@pytest.mark.parametrize("change", ["vector", "length", "type", "header", "sender", "twice"])
def test_the_server_folds_only_what_a_site_signed(make_federation, change):
    federation = make_federation(4)
    attempt = federation.attempt()
    deliveries = attempt.deliveries()
    header, vector = attempt.clients["s000"].upload(deliveries["s000"], federation.updates["s000"])
    sender, error = "s000", DecodeError
    if change == "vector":
        vector[3] ^= 1
    elif change == "length":
        vector = vector[:-1]
    elif change == "type":
        vector = vector.astype(np.int64)
    elif change == "header":
        header, error = header[:-1] + bytes([header[-1] ^ 1]), ProtocolRefused
    elif change == "sender":
        sender, error = "s001", ProtocolRefused
    else:
        attempt.server.add_upload(sender, header, vector)
        error = ProtocolRefused
    with pytest.raises(error):
        attempt.server.add_upload(sender, header, vector)


def test_the_server_treats_an_unusable_answer_as_a_dropout(make_federation):
    federation = make_federation(5)
    attempt = federation.attempt()
    server, clients = attempt.server, attempt.clients
    stranger = clients.pop("s004").advertise()
    with pytest.raises(ProtocolRefused, match="of another site"):
        server.add_advert("s003", stranger)
    with pytest.raises(DecodeError):
        server.add_advert("s004", stranger[:-1])
    with pytest.raises(ProtocolRefused, match="does not verify"):
        server.add_advert("s004", stranger[:-1] + bytes([stranger[-1] ^ 1]))
    opened = attempt.run()
    assert opened.dropouts["advertise"] == ("s004",)


def test_calls_out_of_order_are_errors(make_federation):
    attempt = make_federation(4).attempt()
    for call in (attempt.server.close_shares, attempt.server.close_uploads, attempt.server.finish):
        with pytest.raises(AbortError, match="at advertise, not at"):
            call()


def test_an_update_with_another_weight_is_refused_and_can_be_corrected(make_federation):
    federation = make_federation(3)
    attempt = federation.attempt()
    deliveries = attempt.deliveries()
    wrong = ModelUpdate(fields=federation.updates["s000"].fields, weight=0.5)
    with pytest.raises(ValidationError, match=r"the roster gives s000 1\.0"):
        attempt.clients["s000"].upload(deliveries["s000"], wrong)
    opened = attempt.finish(
        unmask_request=attempt.unmask_request(confirm_request=attempt.confirm_request(deliveries=deliveries))
    )
    assert np.array_equal(opened.vector, federation.expected(federation.names))


def test_parts_that_do_not_fit_are_refused_at_construction(make_federation):
    federation, other = make_federation(3), make_federation(4)
    context = federation.context()
    with pytest.raises(ValidationError, match="identity key of this site"):
        federation.client("s000", context, identity_key=federation.keys["s001"])
    with pytest.raises(ValidationError, match="parameters_hash"):
        federation.client("s000", context, layout=other.layout)
    with pytest.raises(ValidationError, match="parameters_hash"):
        federation.server(other.context())
    federation.roster = make_federation(5).roster
    with pytest.raises(ValidationError, match="has room for 3"):
        federation.server(context)


def test_answers_are_audited_and_secrets_do_not_show(make_federation):
    federation = make_federation(3)
    attempt = federation.attempt()
    client = attempt.clients["s000"]
    attempt.run()
    assert [details["stage"] for _, details in federation.audit["s000"]] == list(STAGES)
    assert client._secrets is None
    assert repr(client) == "SecureAggregationClient('s000', next=OVER)"


def test_the_spool_folder_holds_no_secret(make_federation):
    federation = make_federation(3)
    attempt = federation.attempt()
    adverts = attempt.adverts()
    secrets = attempt.clients["s000"]._secrets
    deliveries = attempt.deliveries(adverts=adverts)
    hidden = [secrets.seed, secrets.mask.private_bytes(), secrets.encryption.private_bytes()]
    hidden += [federation.updates["s000"].fields["delta"].tobytes()]
    attempt.finish(
        unmask_request=attempt.unmask_request(confirm_request=attempt.confirm_request(deliveries=deliveries))
    )
    kept = b"".join(path.read_bytes() for path in (federation.folder / "s000").iterdir())
    assert len(kept) > 100
    for secret in hidden:
        assert secret not in kept
        assert secret.hex().encode() not in kept
