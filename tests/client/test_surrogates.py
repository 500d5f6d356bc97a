"""Surrogates agree within a patient, differ between patients, keep intervals and forms, and need the secret."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.surrogate_dates import ImpossibleDate, shift_date
from client.surrogates import Surrogates


def surrogates(secret: bytes = b"s" * 32) -> Surrogates:
    return Surrogates(secret=secret, languages=["en"], day_first=False)


@pytest.mark.parametrize(
    ("written", "moved"),
    [
        ("2016-01-05", "2016-02-14"),
        ("01/05/2016", "02/14/2016"),
        ("1/5/16", "2/14/16"),
        ("13/1/2016", "22/2/2016"),
        ("12-Jan-2016", "21-Feb-2016"),
        ("January 5, 2016", "February 14, 2016"),
        ("Jan 7", "Feb 16"),
        ("5th of May", "14th of June"),
        ("23rd of May", "2nd of July"),
        ("05 JAN 2016", "14 FEB 2016"),
        ("12 de enero de 2016", "21 de febrero de 2016"),
        ("Febrero de 1998", "Marzo de 1998"),
        ("2016年1月5日", "2016年2月14日"),
        ("1月5日", "2月14日"),
        ("2016-01-05T10:11:12Z", "2016-02-14T10:11:12Z"),
        ("2016", "2016"),
        ("last Monday", None),
    ],
)
def test_a_date_keeps_its_form(written, moved):
    assert shift_date(written, 40, day_first=False) == moved


@given(
    st.dates(date(1950, 1, 1), date(2030, 1, 1)),
    st.dates(date(1950, 1, 1), date(2030, 1, 1)),
    st.text(min_size=1, max_size=9),
)
def test_full_dates_keep_their_distance_within_a_patient(first, second, patient):
    made = surrogates()
    moved = [
        date.fromisoformat(str(made.replace("DATE", one.isoformat(), patient))) for one in (first, second)
    ]
    assert moved[1] - moved[0] == second - first
    assert timedelta(0) < abs(moved[0] - first) <= timedelta(365)


@pytest.mark.parametrize("text", ["2016-02-30", "31/31/2016", "30 February 2016"])
def test_a_date_that_no_calendar_has_is_told(text):
    with pytest.raises(ImpossibleDate):
        shift_date(text, 1, day_first=True)


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        ("89 years", "89 years"),
        ("90 years", "90 years"),
        ("93", "90"),
        ("100 months", "100 months"),
        ("93 años y 2 meses", "90 años y 2 meses"),
        ("93岁", "90岁"),
        ("九十三岁", "九十岁"),
        ("ninety-three", "ninety"),
        ("centenarian", None),
    ],
)
def test_ages_over_89_are_one_group(age, shown):
    assert surrogates().replace("AGE", age, "p") == shown


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("PERSON", "Joan Smithson"),
        ("PERSON", "王小明"),
        ("ID", "A-1234567"),
        ("PHONE", "+1 212 736 5000"),
        ("EMAIL", "a@b.org"),
        ("LOCATION", "12 High Street"),
        ("LOCATION", "上海市浦东新区"),
        ("ORGANIZATION", "Mercy Hospital"),
        ("WARD", "Cedar ward"),
        ("URL", "https://a.b"),
    ],
)
def test_the_same_within_a_patient_another_between_patients_and_secrets(kind, text):
    made = surrogates()
    mine = made.replace(kind, text, "patient 1")
    assert mine is not None
    assert text not in mine
    assert mine == surrogates().replace(kind, text.upper() if kind == "EMAIL" else text, "patient 1")
    others = {made.replace(kind, text, f"patient {i}") for i in range(2, 30)}
    assert len(others) > 5
    assert len({surrogates(bytes([i]) * 32).replace(kind, text, "patient 1") for i in range(30)}) > 5


def test_parts_of_a_name_agree_with_the_whole():
    made = surrogates()
    whole = str(made.replace("PERSON", "Joan Smithson", "p"))
    assert made.replace("PERSON", "Smithson", "p") == whole.split()[1]
    assert str(made.replace("PERSON", "SMITHSON", "p")) == whole.split()[1].upper()


def test_a_number_keeps_its_form():
    made = str(surrogates().replace("ID", "A-12 345/b", "p"))
    assert [c.isalpha() for c in made] == [c.isalpha() for c in "A-12 345/b"]
    assert (made[1], made[4], made[8]) == ("-", " ", "/")


def test_a_type_without_surrogates_has_none():
    assert surrogates().replace("SEX", "H", "p") is None
