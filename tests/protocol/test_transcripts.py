"""What the server sees: uniform, unrelated from run to run, and independent of the update.

Each check is a function that the real protocol passes and that a planted weakness fails, so that the checks
themselves are tested. Thresholds are at a false-alarm chance of about 1e-9 per check.
"""

import itertools
import os
import zlib

import numpy as np
import pytest
from scipy import stats

import client.secure_aggregation as site
from common.masking import apply_masks, keystream
from common.records import ModelUpdate
from common.secagg_messages import UploadHeader

LENGTH = 1 << 15
LOW, HIGH = -(2.0**17 - 1), 2.0**17 - 1


def constant_update(federation, value):
    fields = {
        "delta": np.full(federation.layout.length - 1, value, np.float32),
        "num_examples": np.array([10_000 if value > 0 else 0], np.float32),
    }
    return ModelUpdate(fields=fields, weight=1.0)


def masked(federation, context, value):
    """One site's masked vector for a constant update, in an attempt of its own."""
    attempt = federation.attempt(context)
    deliveries = attempt.deliveries()
    header, vector = attempt.clients["s000"].upload(deliveries["s000"], constant_update(federation, value))
    return header, vector


# --- the checks -------------------------------------------------------------------------------------------


def check_uniform(vector):
    """Chi-square over each byte of the words, and over the bits."""
    octets = vector.view(np.uint8).reshape(-1, 4)
    for column in range(4):
        counts = np.bincount(octets[:, column], minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-9
    ones = int(np.unpackbits(octets).sum())
    assert abs(ones - 16 * len(vector)) < 6.2 * np.sqrt(8 * len(vector))


def check_unrelated(one, other):
    """No shared 16-byte block, and a difference that is itself uniform."""
    blocks = [set(np.ascontiguousarray(v[: len(v) // 4 * 4]).view("V16").tolist()) for v in (one, other)]
    assert not blocks[0] & blocks[1]
    check_uniform(one - other)


def check_same_distribution(one, other):
    """Two-sample Kolmogorov-Smirnov on words and on differences of neighbours."""
    for view in (lambda v: v, lambda v: np.diff(v)):
        assert stats.ks_2samp(view(one), view(other)).pvalue > 1e-9


def check_every_key_bit(apply):
    """Two keys that differ in one bit, whichever, give masks that share no block."""
    key = bytearray(os.urandom(32))
    masks = []
    for bit in (None, *range(256)):
        changed = bytearray(key)
        if bit is not None:
            changed[bit // 8] ^= 1 << bit % 8
        vector = np.zeros(64, np.uint32)
        apply(vector, add=[bytes(changed)])
        masks.append(set(vector.view("V16").tolist()))
    assert all(len(mask) == 16 for mask in masks)
    assert len(set().union(*masks)) == 16 * len(masks)


# --- the protocol passes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(make_federation):
    return make_federation(3, length=LENGTH - 1, rounds=1000)


@pytest.fixture(scope="module")
def runs(federation):
    """Masked vectors of two attempts with the lowest update and two with the highest."""
    return [
        masked(federation, federation.context(round=number), value)
        for number, value in enumerate((LOW, LOW, HIGH, HIGH), 1)
    ]


def test_masked_vectors_are_uniform(runs):
    for _, vector in runs:
        check_uniform(vector)


def test_runs_are_unrelated_whatever_the_update(runs):
    for (_, one), (_, other) in itertools.combinations(runs, 2):
        check_unrelated(one, other)


def test_low_and_high_updates_look_the_same(runs):
    low, high = (np.concatenate([runs[at][1], runs[at + 1][1]]) for at in (0, 2))
    check_same_distribution(low, high)


def test_the_headers_say_nothing_of_the_update(runs):
    headers = [UploadHeader.decode(header) for header, _ in runs]
    assert {len(header) for header, _ in runs} == {len(runs[0][0])}
    assert {(header.position, header.length) for header in headers} == {(0, LENGTH)}
    assert len({header.vector_hash for header in headers}) == 4


def test_every_bit_of_a_mask_key_counts():
    check_every_key_bit(apply_masks)


def test_what_the_server_routes_does_not_depend_on_the_update(make_federation):
    # Everything but the vector and its hash is sent before the update is looked at, or is of fixed size.
    sizes = []
    for value in (LOW, HIGH):
        federation = make_federation(3)
        attempt = federation.attempt()
        federation.updates["s000"] = constant_update(federation, value)
        messages = [attempt.adverts()]
        deliveries = attempt.deliveries(adverts=messages[0])
        messages += deliveries.values()
        messages.append(attempt.confirm_request(deliveries=deliveries))
        messages.append(attempt.unmask_request(confirm_request=messages[-1]))
        messages.append(attempt.clients["s000"].unmask(messages[-1]))
        sizes.append([len(message) for message in messages])
    assert sizes[0] == sizes[1]


# --- planted weaknesses fail ------------------------------------------------------------------------------


def weak_seed(vector, *, add=(), subtract=(), threads=1):
    """Masks from 32 bits of each key, as a non-cryptographic generator would keep them."""

    def short(keys):
        return [zlib.crc32(key[:4]).to_bytes(4) * 8 for key in keys]

    apply_masks(vector, add=short(add), subtract=short(subtract), threads=threads)


def no_mask(vector, *, add=(), subtract=(), threads=1):
    """No mask at all."""


def half_masks(vector, *, add=(), subtract=(), threads=1):
    """Masks of the lower half of each word only."""
    vector += keystream(add[0], len(vector)) >> np.uint32(16)


def test_planted_a_32_bit_seed_is_caught():
    with pytest.raises(AssertionError):
        check_every_key_bit(weak_seed)


@pytest.mark.parametrize("weakness", [no_mask, half_masks])
def test_planted_thin_masks_are_caught(make_federation, monkeypatch, weakness):
    federation = make_federation(3, length=LENGTH - 1)
    monkeypatch.setattr(site, "apply_masks", weakness)
    vectors = [
        masked(federation, federation.context(round=number), value)[1]
        for number, value in enumerate((LOW, HIGH), 1)
    ]
    with pytest.raises(AssertionError):
        check_uniform(vectors[0])
    with pytest.raises(AssertionError):
        check_same_distribution(*vectors)


class _Forgetful:
    """A guard that forgets: the planted weakness."""

    def begin(self, *arguments):
        """Allow everything."""

    def answer(self, *arguments, **named):
        """Allow everything."""


def test_planted_a_reused_nonce_and_keys_are_caught(make_federation, monkeypatch):
    # The same keys and nonce for two updates: each vector alone is uniform, their difference is the updates'.
    federation = make_federation(3, length=LENGTH - 1)
    kept = {}
    fresh = site._Secrets

    def reused():
        name = next(names)
        return kept.setdefault(name, fresh())

    monkeypatch.setattr(site, "_Secrets", reused)
    monkeypatch.setattr(site.RoundGuard, "begin", _Forgetful.begin)
    monkeypatch.setattr(site.RoundGuard, "answer", _Forgetful.answer)
    vectors, context = [], federation.context()
    for value in (LOW, HIGH):
        names = iter(federation.names)
        vectors.append(masked(federation, context, value)[1])
    check_uniform(vectors[0])
    with pytest.raises(AssertionError):
        check_unrelated(*vectors)
    difference = (vectors[1] - vectors[0]).view(np.int32)
    assert set(difference[:-1].tolist()) == {int(HIGH - LOW)}


def test_planted_reused_keys_under_a_fresh_nonce_still_do_not_repeat_a_mask(make_federation, monkeypatch):
    # Mask keys are derived with the attempt in the salt, so this second line of defence holds by itself.
    federation = make_federation(3, length=LENGTH - 1)
    kept, fresh = {}, site._Secrets
    monkeypatch.setattr(site, "_Secrets", lambda: kept.setdefault(next(names), fresh()))
    vectors = []
    for number in (1, 2):
        names = iter(federation.names)
        vectors.append(masked(federation, federation.context(round=number), LOW)[1])
    check_unrelated(*vectors)
