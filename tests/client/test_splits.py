"""Splits depend on the key and the id alone, and never tear a patient apart."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.preprocessing import Rejected
from client.splits import LabelBalance, Splitter, load_split_key, parse_fractions, unit_for
from common.errors import InputError, ValidationError
from common.records import EntitySpan, Note

KEY = bytes(range(32))
SPLITTER = Splitter(fractions=(0.8, 0.1, 0.1), unit="patient", key=KEY)


def note(patient: str | None, note_id: str = "n") -> Note:
    return Note(
        note_id=note_id, text="fever", patient_id=patient, spans=(EntitySpan(start=0, end=5, label="T"),)
    )


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30), st.integers(0, 29))
@settings(max_examples=100, deadline=None)
def test_later_records_change_no_split_and_a_patient_stays_whole(patients, first):
    """Formal guarantee: a note's split is a function of key and patient alone."""
    before = {p: SPLITTER.split_of(note(p)) for p in patients[:first]}
    after = {p: {SPLITTER.split_of(note(p, f"n{i}")) for i in range(3)} for p in patients}
    assert all(len(splits) == 1 for splits in after.values())
    assert all(after[p] == {split} for p, split in before.items())


def test_the_shares_are_about_those_asked_for():
    splits = [SPLITTER.split_of(note(f"patient-{i}")) for i in range(5000)]
    # Four standard deviations of a binomial with 5,000 draws.
    assert abs(splits.count("train") / 5000 - 0.8) < 4 * (0.8 * 0.2 / 5000) ** 0.5
    assert abs(splits.count("test") / 5000 - 0.1) < 4 * (0.1 * 0.9 / 5000) ** 0.5


def test_another_key_or_unit_divides_otherwise():
    ids = [note(f"p{i}", f"p{i}") for i in range(200)]
    splits = [SPLITTER.split_of(n) for n in ids]
    assert [dataclasses.replace(SPLITTER, key=bytes(32)).split_of(n) for n in ids] != splits
    assert [dataclasses.replace(SPLITTER, unit="record").split_of(n) for n in ids] != splits


def test_an_empty_split_gets_nothing():
    splitter = Splitter(fractions=(0.5, 0.0, 0.5), unit="patient", key=KEY)
    assert {splitter.split_of(note(f"p{i}")) for i in range(300)} == {"train", "test"}


def test_a_note_without_the_id_is_rejected_and_never_split_by_another():
    with pytest.raises(Rejected) as caught:
        SPLITTER.split_of(note(None))
    assert caught.value.reason == "no-patient-id"


@pytest.mark.parametrize("text", ["0.8,0.2", "a,b,c", "0.8,0.1,0.2", "0,0.5,0.5", "-0.1,0.6,0.5", "nan,0,1"])
def test_fractions_that_are_none_are_refused(text):
    with pytest.raises(ValidationError, match=r"0\.8,0\.1,0\.1"):
        parse_fractions(text)


def test_a_key_is_made_once_for_its_owner_alone_and_kept(tmp_path):
    path = tmp_path / "split.key"
    key = load_split_key(path)
    assert (len(key), path.stat().st_mode & 0o777) == (32, 0o600)
    assert load_split_key(path) == key
    assert key.hex() not in repr(dataclasses.replace(SPLITTER, key=key))
    path.chmod(0o644)
    with pytest.raises(InputError, match="split key has mode 0644"):
        load_split_key(path)


def test_a_file_that_holds_no_key_is_refused(tmp_path):
    path = tmp_path / "split.key"
    path.write_text("short", encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(InputError, match="64 hexadecimal digits") as caught:
        load_split_key(path)
    assert "short" not in str(caught.value).replace(str(path), "")


def test_the_balance_counts_notes_patients_and_mentions():
    balance = LabelBalance()
    for i in range(3):
        balance.add("train", note("p", f"n{i}"), "p")
    assert balance.to_dict() == {"train": {"notes": 3, "units": 1, "mentions": {"T": 3}}}


def test_the_unit_is_the_largest_that_is_named():
    assert [unit_for(n) for n in (note("p"), note(None), Note(note_id="a", text="x", document_id="d"))] == [
        "patient",
        "record",
        "document",
    ]
