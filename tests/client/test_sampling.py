"""Units, Poisson draws and physical batches: what each depends on, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from client.sampling import PhysicalBatch, PoissonSampler, Unit, group_units, physical_batches
from common.errors import DataError, ValidationError
from common.records import Example
from common.secure_random import SecureGenerator

KEY = bytes(range(32))


def window(unit: str, length: int = 3, start: int = 1) -> Example:
    labels = np.full(length, -100, dtype=np.int64)
    labels[1:] = 1
    return Example(
        note_id=f"note-{unit}",
        unit_id=unit,
        input_ids=np.arange(start, start + length, dtype=np.int32),
        labels=labels,
        words=np.zeros(length, dtype=np.int32),
    )


def units_of(lengths: Iterable[list[int]]) -> tuple[Unit, ...]:
    return group_units([window(f"u{i}", n, 10 * i + 1) for i, ns in enumerate(lengths) for n in ns])


def test_windows_are_grouped_by_unit_in_the_order_of_the_data() -> None:
    units = group_units([window("b"), window("a"), window("b", 5)])
    assert [unit.unit_id for unit in units] == ["b", "a"]
    assert [w.num_tokens for w in units[0].windows] == [3, 5]
    assert (units[0].longest, units[0].supervised) == (5, 6)


@pytest.mark.parametrize("missing", ["", "  ", None])
def test_a_missing_unit_id_is_an_error_and_never_a_unit(missing: str | None) -> None:
    broken = replace(window("b"), unit_id=missing)
    with pytest.raises(DataError, match=r"Window 2 of 2 \(note 'note-b'\) has no unit id"):
        group_units([window("a"), broken])


def starts(unit: Unit) -> list[int]:
    return [int(w.input_ids[0]) for w in unit.windows]


@settings(max_examples=30, deadline=None)
@given(before=st.integers(0, 5), maximum=st.integers(1, 12))
def test_which_windows_are_kept_depends_on_the_unit_alone(before: int, maximum: int) -> None:
    mine = [window("me", 3, start) for start in range(1, 11)]
    others = [window(f"other{i}", 4, i) for i in range(before)]
    alone = group_units(mine, max_windows_per_unit=maximum, key=KEY)[0]
    among = group_units([*others, *mine, *others], max_windows_per_unit=maximum, key=KEY)[before]
    assert starts(alone) == starts(among) == sorted(starts(alone))
    assert len(alone.windows) == min(maximum, 10)


def test_the_choice_of_windows_changes_with_unit_and_key_and_is_even() -> None:
    def kept(unit: str, key: bytes) -> tuple[int, ...]:
        windows = [window(unit, 3, start) for start in range(8)]
        return tuple(starts(group_units(windows, max_windows_per_unit=4, key=key)[0]))

    choices = [kept(f"u{i}", KEY) for i in range(200)]
    assert len(set(choices)) > 30
    counts = np.bincount(np.concatenate(choices), minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert kept("u0", KEY) != kept("u0", b"another")


def test_inclusion_counts_pass_chi_square_and_are_independent() -> None:
    units, rounds, rate = units_of([[3]] * 200), 500, 0.3
    sampler = PoissonSampler(units, sampling_rate=rate, generator=SecureGenerator.for_tests(KEY))
    names = [unit.unit_id for unit in units]
    draws = np.array([np.isin(names, [unit.unit_id for unit in sampler.draw()]) for _ in range(rounds)])
    counts = draws.sum(axis=0)
    statistic = float(((counts - rounds * rate) ** 2 / (rounds * rate * (1 - rate))).sum())
    assert 1e-3 < stats.chi2.sf(statistic, df=200) < 1 - 1e-3
    sizes = draws.sum(axis=1)
    # A fixed batch size, or shuffling without replacement, would have no such spread.
    assert 0.8 < sizes.var() / (200 * rate * (1 - rate)) < 1.25
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.2


def test_draws_do_not_follow_torch_or_numpy_seeds() -> None:
    units, draws = units_of([[3]] * 64), []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        sampler = PoissonSampler(units, sampling_rate=0.5, generator=SecureGenerator())
        draws.append([unit.unit_id for unit in sampler.draw()])
    assert draws[0] != draws[1]


def test_draws_keep_the_order_of_the_data_whatever_the_lengths() -> None:
    units = units_of([[9], [2], [7], [3]])
    sampler = PoissonSampler(units, sampling_rate=1.0, generator=SecureGenerator())
    assert sampler.draw() == units


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan"), "0.5"])
def test_a_rate_out_of_range_is_refused(rate: object) -> None:
    with pytest.raises(ValidationError, match="sampling_rate"):
        PoissonSampler([], sampling_rate=rate, generator=SecureGenerator())  # type: ignore[arg-type]


def test_an_empty_draw_has_no_physical_batches() -> None:
    sampler = PoissonSampler([], sampling_rate=0.5, generator=SecureGenerator())
    assert sampler.draw() == ()
    assert list(physical_batches((), token_budget=10)) == []


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=5), max_size=8),
    budget=st.integers(9, 60),
)
def test_every_window_lies_in_one_batch_within_the_budget_and_units_are_whole(
    lengths: list[list[int]], budget: int
) -> None:
    units = units_of(lengths)
    seen: list[int] = []
    owners: list[list[int]] = []
    carried: list[int] = []
    for batch in physical_batches(units, token_budget=budget):
        assert batch.input_ids.numel() <= budget
        rows = [[int(x) for x in row[mask == 1]] for row, mask in rows_of(batch)]
        seen += [row[0] for row in rows]
        if not batch.complete or carried:
            assert batch.num_units == 1
            carried += [row[0] for row in rows]
            if batch.complete:
                owners.append(carried)
                carried = []
            continue
        for unit in range(batch.num_units):
            members = torch.nonzero(batch.units == unit).flatten().tolist()
            owners.append([rows[row][0] for row in members])
    assert not carried
    assert sorted(seen) == sorted(start for unit in units for start in starts(unit))
    assert sorted(map(sorted, owners)) == sorted(sorted(starts(unit)) for unit in units)


def rows_of(batch: PhysicalBatch) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    return zip(batch.input_ids, batch.attention_mask, strict=True)


def test_weights_make_a_units_loss_the_mean_over_its_labelled_words() -> None:
    units = units_of([[3, 5], [4]])
    (batch,) = physical_batches(units, token_budget=100, pad_token_id=7)
    weight = {unit: batch.weights[batch.units == unit].tolist() for unit in (0, 1)}
    assert weight[0] == pytest.approx([1 / 3])
    assert weight[1] == pytest.approx([1 / 6, 1 / 6])
    assert batch.input_ids[0].tolist()[4:] == [7]
    assert batch.labels[0].tolist() == [-100, 1, 1, 1, -100]


def test_a_unit_weighs_the_same_alone_in_parts_and_among_others() -> None:
    units = units_of([[3, 3, 3, 3], [2]])
    alone = [batch.weights for batch in physical_batches(units[:1], token_budget=6)]
    among = [batch.weights for batch in physical_batches(units, token_budget=1000)]
    assert len(alone) == 2
    assert set(torch.cat(alone).tolist()) < set(torch.cat(among).tolist())


def test_a_unit_without_labels_counts_and_weighs_nothing() -> None:
    silent = replace(window("s"), labels=np.full(3, -100, dtype=np.int64))
    (batch,) = physical_batches(group_units([silent]), token_budget=9)
    assert (batch.num_units, batch.weights.tolist()) == (1, [0.0])


def test_a_window_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(DataError, match="9 tokens but token_budget is 8"):
        list(physical_batches(units_of([[9]]), token_budget=8))


def test_nothing_of_a_record_is_shown() -> None:
    (batch,) = physical_batches(units_of([[3]]), token_budget=9)
    assert repr(batch) == "PhysicalBatch(num_units=1, complete=True)"
    assert "windows" not in repr(units_of([[3]])[0])
