"""The roster: its file, its hash, its weights and what it refuses."""

import pytest

from common.errors import PlanError, ValidationError
from common.roster import Member, Roster, fingerprint, read_roster, write_roster


def member(name, *, key=None, units=1):
    return Member(name=name, identity_key=key or name.encode().ljust(32, b"."), public_units=units)


ROSTER = Roster((member("south", units=50), member("north", units=200)))


def test_a_written_roster_reads_back_the_same(tmp_path):
    path = tmp_path / "roster.toml"
    write_roster(ROSTER, path)
    write_roster(ROSTER, path)
    assert read_roster(path) == ROSTER
    assert read_roster(path).digest() == ROSTER.digest()
    assert [entry.name for entry in tmp_path.iterdir()] == ["roster.toml"]


def test_weights_are_public_units_over_the_largest():
    assert ROSTER.weights() == {"north": 1.0, "south": 0.25}
    assert ROSTER.weight("south") == 0.25


def test_order_does_not_matter_and_everything_else_does():
    assert Roster(tuple(reversed(ROSTER.members))).digest() == ROSTER.digest()
    others = [
        Roster((member("south", units=50),)),
        Roster((member("south", units=51), member("north", units=200))),
        Roster((member("south", units=50, key=b"x" * 32), member("north", units=200))),
        Roster((member("southern", key=member("south").identity_key, units=50), member("north", units=200))),
    ]
    assert len({roster.digest() for roster in (ROSTER, *others)}) == 5


def test_the_digest_is_pinned():
    # A change here silently changes every plan hash.
    assert ROSTER.digest().hex() == "2094238b205d3e246c6697bb66c5cca365fa997704d84ab9f239f856953bea3c"


def test_a_fingerprint_is_readable_and_distinct():
    one, other = fingerprint(b"\x00" * 32), fingerprint(b"\x01" * 32)
    assert one != other
    assert [len(group) for group in one.split()] == [4] * 10


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ((), "has 0 members"),
        ((member("a"), member("a", key=b"x" * 32)), "lists a twice"),
        ((member("a"), member("A", key=b"x" * 32)), "names must differ"),
        ((member("a"), member("b", key=member("a").identity_key)), "a and b have the same identity key"),
    ],
)
def test_ambiguous_rosters_are_refused(members, words):
    with pytest.raises(ValidationError, match=words):
        Roster(members)


@pytest.mark.parametrize("name", ["", "two words", "-x", "é", "x" * 65, "a\n", 'a"'])
def test_names_that_could_mislead_are_refused(name):
    with pytest.raises(ValidationError, match=r"member name|member's name"):
        member(name, key=b"k" * 32)


@pytest.mark.parametrize(("key", "units"), [(b"k" * 31, 1), ("k" * 32, 1), (b"k" * 32, 0), (b"k" * 32, 1.5)])
def test_bad_keys_and_units_are_refused(key, units):
    with pytest.raises(ValidationError):
        Member(name="a", identity_key=key, public_units=units)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("member = [", "cannot be read"),
        ("", "has 0 members"),
        ("member = 3", r"\[\[member\]\] tables"),
        ("members = []", "did you mean 'member'"),
        ('[[member]]\nname = "a"', "number 1 lacks identity_key"),
        ('[[member]]\nname = "a"\nidentity_key = "zz"', r"number 1.*identity_key"),
        (f'[[member]]\nname = "a"\nidentity_key = "{"00" * 32}"\nunits = 2', "unknown key 'units'"),
        (f'[[member]]\nname = 7\nidentity_key = "{"00" * 32}"', "non-empty text"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(tmp_path, text, words):
    path = tmp_path / "roster.toml"
    path.write_text(text)
    with pytest.raises(PlanError, match=words) as caught:
        read_roster(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"no\.toml"):
        read_roster(tmp_path / "no.toml")


def test_unknown_members_are_named():
    with pytest.raises(ValidationError, match="no member 'east'"):
        ROSTER.member("east")
    assert "east" not in ROSTER
    assert "north" in ROSTER.with_member(member("east"))
    assert len(ROSTER.with_member(member("east"))) == 3
