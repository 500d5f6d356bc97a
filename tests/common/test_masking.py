"""Masks: the published keystream, exact inverses, and independence of blocks, batches and threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ValidationError
from common.masking import apply_masks, keystream

KEYS = [bytes([number]) * 32 for number in range(1, 100)]


def test_the_keystream_is_that_of_nist_sp_800_38a_f_5_5():
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    words = keystream(key, 16, counter=counter).astype("<u4").tobytes()
    assert bytes(a ^ b for a, b in zip(words, plain, strict=True)).hex() == cipher


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, (3 << 14) - 1, (3 << 14) + 1, 2 * (3 << 14) + 2])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_mask_is_the_keystream_whatever_the_blocks_and_threads(length, threads):
    vector = np.arange(length, dtype=np.uint32)
    apply_masks(vector, add=KEYS[:1], subtract=KEYS[1:2], threads=threads)
    expected = np.arange(length, dtype=np.uint32) + keystream(KEYS[0], length) - keystream(KEYS[1], length)
    assert np.array_equal(vector, expected)


def test_more_keys_than_one_batch_are_all_applied():
    vector = np.zeros(1000, np.uint32)
    apply_masks(vector, add=KEYS)
    expected = np.zeros(1000, np.uint32)
    for key in KEYS:
        expected += keystream(key, 1000)
    assert np.array_equal(vector, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 110_000), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(0, 9))
def test_masks_cancel_exactly(length, added, subtracted, threads, seed):
    original = np.random.default_rng(seed).integers(0, 2**32, length, np.uint32)
    vector = original.copy()
    apply_masks(vector, add=KEYS[:added], subtract=KEYS[10 : 10 + subtracted], threads=threads)
    apply_masks(vector, add=KEYS[10 : 10 + subtracted], subtract=KEYS[:added])
    assert np.array_equal(vector, original)


def test_a_view_into_a_larger_vector_is_masked_alone():
    whole = np.zeros(100, np.uint32)
    apply_masks(whole[10:20], add=KEYS[:1])
    assert not whole[:10].any()
    assert not whole[20:].any()
    assert np.array_equal(whole[10:20], keystream(KEYS[0], 10))


@pytest.mark.parametrize("vector", [np.zeros(4), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]])
def test_other_arrays_are_refused(vector):
    with pytest.raises(ValidationError, match="contiguous one-dimensional uint32"):
        apply_masks(vector, add=KEYS[:1])


def test_a_key_of_another_length_is_refused_before_anything_changes():
    vector = np.zeros(100_000, np.uint32)
    with pytest.raises(ValidationError, match="must have 32"):
        apply_masks(vector, add=[KEYS[0], bytes(16)], threads=2)
    assert not vector.any()
