import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.batching import batches_by_length, collate, padding_waste
from common.errors import ValidationError
from common.records import Example

LENGTHS = st.lists(st.integers(2, 60), max_size=80)


def example(length, name="n"):
    ids = np.arange(1, length + 1, dtype=np.int32)
    labels = np.full(length, -100, dtype=np.int64)
    labels[1] = 3
    return Example(
        note_id=name, unit_id=name, input_ids=ids, labels=labels, words=np.full(length, -1, dtype=np.int32)
    )


def examples(lengths):
    return [example(length, str(number)) for number, length in enumerate(lengths)]


def test_padding_is_masked_and_ignored():
    batch = collate([example(2), example(4)], pad_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, 3, -100, -100], [-100, 3, -100, -100]]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}
    assert batch.to("cpu").labels.tolist() == batch.labels.tolist()


@given(LENGTHS, st.integers(1, 9), st.sampled_from([None, 0, 1]))
def test_every_example_is_in_one_batch(lengths, batch_size, seed):
    generator = None if seed is None else np.random.default_rng(seed)
    batches = batches_by_length(examples(lengths), batch_size=batch_size, generator=generator)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sorted(int(e.note_id) for batch in batches for e in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(2, 200))
def test_token_batches_stay_below_their_limit(lengths, limit):
    batches = batches_by_length(examples(lengths), max_tokens_per_batch=limit)
    assert sorted(e.num_tokens for batch in batches for e in batch) == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(e.num_tokens for e in batch) <= limit


def test_the_generator_decides_the_order():
    data = examples([5] * 40 + [9] * 40)

    def order(seed):
        batches = batches_by_length(data, batch_size=4, generator=np.random.default_rng(seed))
        return [e.note_id for batch in batches for e in batch]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_sorting_saves_padding_and_pools_save_less():
    data = examples(np.random.default_rng(0).integers(2, 60, size=2000).tolist())
    generator = np.random.default_rng(0)
    unsorted = padding_waste([data[i : i + 32] for i in range(0, len(data), 32)])
    pooled = padding_waste(batches_by_length(data, batch_size=32, generator=generator, pool=256))
    assert padding_waste(batches_by_length(data, batch_size=32, generator=generator)) < 0.03
    assert 0.03 < pooled < unsorted / 2


def test_waste_counts_padding_among_all_tokens():
    assert padding_waste([[example(2), example(4)], [example(3)]]) == pytest.approx(2 / 11)
    assert padding_waste([]) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"batch_size": 2, "max_tokens_per_batch": 9}, "exactly one of"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0"),
        ({"batch_size": 4, "pool": 16}, "pool needs a generator"),
        ({"batch_size": 4, "pool": 2}, "pool is 2"),
    ],
)
def test_unusable_sizes_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        batches_by_length(examples([3, 4]), **options)
    with pytest.raises(ValidationError, match="holds no example"):
        collate([], 0)
