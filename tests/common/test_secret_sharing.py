"""Shamir's scheme: a worked example, reconstruction from every subset, and nothing from fewer."""

import contextlib
import itertools
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import AbortError, DecodeError, ValidationError
from common.secret_sharing import PRIME, SHARE_BYTES, reconstruct_secret, split_secret

SECRET = bytes(range(32))


def is_prime(n):
    """Miller-Rabin with fixed bases; the prime is a constant, not an adversary's number."""
    d, twos = n - 1, 0
    while d % 2 == 0:
        d, twos = d // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(base, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_the_least_prime_above_2_to_256():
    assert is_prime(PRIME)
    assert not any(is_prime(2**256 + odd) for odd in range(1, 297, 2))


def test_a_worked_example(monkeypatch):
    # Wikipedia's polynomial, 1234 + 166 x + 94 x^2, at 1, -1, 2, -2, 3.
    drawn = (166).to_bytes(49) + (94).to_bytes(49)
    monkeypatch.setattr(secrets, "token_bytes", lambda size: drawn[:size])
    shares = split_secret((1234).to_bytes(32), threshold=3, shares=5)
    assert [int.from_bytes(share) for share in shares] == [1494, 1162, 1942, 1278, 2578]
    assert reconstruct_secret({1: shares[1], 4: shares[4], 2: shares[2]}, threshold=3) == (1234).to_bytes(32)


def test_every_subset_of_threshold_size_gives_the_secret():
    shares = split_secret(SECRET, threshold=3, shares=6)
    for chosen in itertools.combinations(range(6), 3):
        assert reconstruct_secret({index: shares[index] for index in chosen}, threshold=3) == SECRET


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.data())
def test_reconstruction_is_the_inverse_of_splitting(secret, data):
    count = data.draw(st.integers(1, 40))
    threshold = data.draw(st.integers(1, count))
    chosen = data.draw(st.permutations(range(count)))[:threshold]
    shares = split_secret(secret, threshold=threshold, shares=count)
    assert {len(share) for share in shares} == {SHARE_BYTES}
    assert reconstruct_secret({index: shares[index] for index in chosen}, threshold=threshold) == secret


def test_extreme_secrets_survive():
    for secret in (bytes(32), b"\xff" * 32):
        shares = split_secret(secret, threshold=2, shares=3)
        assert reconstruct_secret({0: shares[0], 2: shares[2]}, threshold=2) == secret


def test_too_few_shares_abort_and_fit_every_secret():
    shares = split_secret(SECRET, threshold=3, shares=5)
    with pytest.raises(AbortError, match="2 shares of a secret are there; 3 are needed"):
        reconstruct_secret({0: shares[0], 1: shares[1]}, threshold=3)
    # Whatever the true secret, some third share completes any other one: two shares exclude nothing.
    for other in (bytes(32), b"\x01" * 32):
        at_zero, at_one, at_minus_one = map(int.from_bytes, (other, shares[0], shares[1]))
        at_two = (3 * at_one + at_minus_one - 3 * at_zero) % PRIME
        completed = {0: shares[0], 1: shares[1], 2: at_two.to_bytes(SHARE_BYTES)}
        assert reconstruct_secret(completed, threshold=3) == other


def test_shares_of_one_secret_differ_from_run_to_run():
    runs = [split_secret(SECRET, threshold=2, shares=2) for _ in range(50)]
    assert len({share for run in runs for share in run}) == 100


def test_a_wrong_share_changes_the_secret_or_aborts():
    shares = dict(enumerate(split_secret(SECRET, threshold=3, shares=3)))
    shares[1] = (int.from_bytes(shares[1]) ^ 1).to_bytes(SHARE_BYTES)
    with contextlib.suppress(AbortError):
        assert reconstruct_secret(shares, threshold=3) != SECRET


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33), b"\xff" * 33])
def test_what_is_no_share_does_not_decode(share):
    with pytest.raises(DecodeError):
        reconstruct_secret({0: share}, threshold=1)


@pytest.mark.parametrize(
    ("secret", "threshold", "count"), [(bytes(31), 1, 1), (SECRET, 0, 1), (SECRET, 3, 2)]
)
def test_bad_arguments_are_refused(secret, threshold, count):
    with pytest.raises(ValidationError):
        split_secret(secret, threshold=threshold, shares=count)
