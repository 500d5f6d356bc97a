"""Partitioners: every note in exactly one site, documents whole, the same under the same seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError, ValidationError
from common.records import EntitySpan, Note
from simulation.partition import METHODS, partition
from simulation.synthetic import generate

LABELS = ("Disease", "Drug", "Procedure")


def make(count: int, *, per_document: int = 1, hospitals: int = 4, seed: int = 0) -> list[Note]:
    rng = np.random.default_rng(seed)
    notes = []
    for index in range(count):
        document = index // per_document
        labels = rng.choice(LABELS, size=rng.integers(0, 4))
        spans = tuple(
            EntitySpan(start=2 * i, end=2 * i + 1, label=str(label)) for i, label in enumerate(labels)
        )
        columns = {"hospital": f"h{document % hospitals}"}
        notes.append(
            Note(
                note_id=f"n{index}",
                text="x" * 10,
                spans=spans,
                document_id=f"d{document}",
                patient_id=f"p{document // 2}",
                columns=columns,
            )
        )
    return notes


@settings(deadline=None, max_examples=60)
@given(
    method=st.sampled_from(METHODS),
    sites=st.integers(1, 4),
    per_document=st.integers(1, 4),
    seed=st.integers(0, 2**62),
    alpha=st.floats(1.0, 2.0),
)
def test_each_note_is_in_exactly_one_site_and_documents_stay_whole(method, sites, per_document, seed, alpha):
    notes = make(192, per_document=per_document)
    divided = partition(notes, method=method, sites=sites, seed=seed, alpha=alpha, column="hospital")
    assert len(divided) == sites
    assert all(divided)
    assert Counter(n.note_id for site in divided for n in site) == Counter(n.note_id for n in notes)
    homes: dict[str | None, set[int]] = {}
    for index, site in enumerate(divided):
        for note in site:
            homes.setdefault(note.document_id, set()).add(index)
    assert all(len(home) == 1 for home in homes.values())
    assert divided == partition(notes, method=method, sites=sites, seed=seed, alpha=alpha, column="hospital")


def test_notes_keep_their_order_within_a_site():
    for site in partition(make(50), method="even", sites=3, seed=1):
        numbers = [int(note.note_id[1:]) for note in site]
        assert numbers == sorted(numbers)


def test_other_seeds_divide_otherwise():
    notes = make(40)
    assert partition(notes, method="even", sites=4, seed=0) != partition(
        notes, method="even", sites=4, seed=1
    )


@given(count=st.integers(5, 60), sites=st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_even_sites_differ_by_at_most_one_note(count, sites):
    sizes = [len(site) for site in partition(make(count), method="even", sites=sites, seed=0)]
    assert max(sizes) - min(sizes) <= 1


def test_even_sites_differ_by_at_most_one_document():
    sizes = [len(site) for site in partition(make(100, per_document=7), method="even", sites=4, seed=0)]
    assert max(sizes) - min(sizes) <= 7


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_power_law_sizes_follow_the_law(alpha):
    sizes = [len(site) for site in partition(make(1000), method="power_law", sites=5, seed=0, alpha=alpha)]
    raw = np.arange(1, 6) ** -alpha
    np.testing.assert_allclose(sizes, 1000 * raw / raw.sum(), atol=1)


def test_small_alpha_skews_entity_types_and_large_alpha_does_not():
    notes = generate(hospital_count=1, notes_per_hospital=400, devel_notes=0, test_notes=0).train[0]

    def spread(alpha: float) -> float:
        divided = partition(notes, method="dirichlet", sites=4, seed=0, alpha=alpha)
        shares = []
        for site in divided:
            counts = Counter(span.label for note in site for span in note.spans)
            shares.append(counts["Drug"] / counts.total())
        return max(shares) - min(shares)

    assert spread(0.3) > 2 * spread(1000.0)


def test_large_dirichlet_alpha_is_nearly_even():
    sizes = [len(site) for site in partition(make(400), method="dirichlet", sites=4, seed=0, alpha=10_000)]
    assert max(sizes) - min(sizes) < 20


def test_dirichlet_draws_again_until_the_minimum_is_met():
    notes = make(120)
    # A loose minimum shows that the first draw of this seed would not have done.
    loose = partition(notes, method="dirichlet", sites=6, seed=3, alpha=0.5, minimum_examples=1)
    tight = partition(notes, method="dirichlet", sites=6, seed=3, alpha=0.5, minimum_examples=8)
    assert min(map(len, loose)) < 8 <= min(map(len, tight))


def test_by_column_gives_each_value_its_site():
    divided = partition(make(40), method="by_column", sites=4, seed=0, column="hospital")
    assert [{note.columns["hospital"] for note in site} for site in divided] == [
        {"h0"},
        {"h1"},
        {"h2"},
        {"h3"},
    ]


def test_by_column_balances_more_values_than_sites():
    divided = partition(make(70, hospitals=7), method="by_column", sites=3, seed=0, column="hospital")
    assert sorted(map(len, divided)) == [20, 20, 30]


def test_by_patient_keeps_patients_whole():
    divided = partition(make(60, per_document=2), method="by_column", sites=5, seed=0, column="patient_id")
    homes = [{note.patient_id for note in site} for site in divided]
    assert sum(map(len, homes)) == len(set().union(*homes))


def test_a_note_without_a_document_is_its_own():
    notes = [
        Note(note_id="a", text=""),
        Note(note_id="b", text="", document_id="a"),
        Note(note_id="c", text="", document_id="a"),
    ]
    divided = partition(notes, method="even", sites=2, seed=0)
    assert sorted([note.note_id for note in site] for site in divided) == [["a"], ["b", "c"]]


@pytest.mark.parametrize("method", METHODS)
def test_too_few_notes_are_refused(method):
    with pytest.raises(
        InputError, match=rf"10 notes in 10 documents .* 4 sites .* 5 examples .*{method}.* at most 2"
    ):
        partition(make(10), method=method, sites=4, seed=0, minimum_examples=5, column="hospital")


def test_no_notes_are_refused():
    with pytest.raises(InputError, match="0 notes in 0 documents"):
        partition([], method="even", sites=1, seed=0)


def test_one_large_document_cannot_fill_two_sites():
    with pytest.raises(InputError, match="in 1 documents cannot give 2 sites"):
        partition(make(10, per_document=10), method="even", sites=2, seed=0)


@pytest.mark.parametrize(
    ("method", "alpha", "remedy"),
    [("power_law", 4.0, "lower alpha or sites"), ("dirichlet", 0.001, "raise alpha.*100 draws")],
)
def test_a_minimum_that_is_missed_is_refused_with_a_remedy(method, alpha, remedy):
    with pytest.raises(InputError, match=rf"{method} leaves site-\d+ with \d+ of the 24 examples.*{remedy}"):
        partition(make(100), method=method, sites=4, seed=0, alpha=alpha, minimum_examples=24)


def test_a_small_column_value_is_refused():
    notes = [*make(30, hospitals=1), Note(note_id="z", text="", columns={"hospital": "small"})]
    with pytest.raises(InputError, match=r"by_column leaves site-1 with 1 of the 5 .* choose another column"):
        partition(notes, method="by_column", sites=2, seed=0, minimum_examples=5, column="hospital")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "dirichlett"}, "method is 'dirichlett'.*Did you mean 'dirichlet'"),
        ({"sites": 0}, "sites is 0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"minimum_examples": 0}, "minimum_examples is 0"),
        ({"method": "by_column"}, "column is not set"),
        ({"method": "by_column", "column": "hospitl"}, "column is 'hospitl'.*Did you mean 'hospital'"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValidationError, match=sentence):
        partition(make(20), **{"method": "even", "sites": 2, "seed": 0, **arguments})


def test_too_few_values_are_refused():
    with pytest.raises(InputError, match="2 different values, which cannot fill 3 sites; set sites to 2"):
        partition(make(20, hospitals=2), method="by_column", sites=3, seed=0, column="hospital")


def test_a_column_that_differs_within_a_document_is_refused():
    notes = [Note(note_id=str(i), text="", document_id="d", columns={"ward": str(i)}) for i in range(2)]
    notes.append(Note(note_id="2", text="", columns={"ward": "0"}))
    with pytest.raises(ValidationError, match="2 different values within one document"):
        partition(notes, method="by_column", sites=2, seed=0, column="ward")
