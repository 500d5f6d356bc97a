import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ValidationError
from common.tag_schemes import TagScheme, TagStatistics, decode, split_tag, to_iob2

ENTITIES = st.lists(st.tuples(st.sampled_from(["", "A", "B-c"]), st.integers(1, 4)), max_size=12)


def write(entities, scheme):
    """Write runs of `(label or "", length)` in a scheme: the opposite of the code under test."""
    tags, previous = [], ""
    for label, length in entities:
        if not label:
            tags += ["O"] * length
        elif scheme is TagScheme.IOB1:
            tags += [f"{'B' if previous == label else 'I'}-{label}"] + [f"I-{label}"] * (length - 1)
        elif scheme is TagScheme.IOB2:
            tags += [f"B-{label}"] + [f"I-{label}"] * (length - 1)
        else:
            last, single = ("E", "S") if scheme is TagScheme.IOBES else ("L", "U")
            inner = [f"B-{label}", *[f"I-{label}"] * (length - 2), f"{last}-{label}"]
            tags += [f"{single}-{label}"] if length == 1 else inner
        previous = label
    return tags


def detect(*sequences):
    statistics = TagStatistics()
    for tags in sequences:
        statistics.observe([split_tag(tag) for tag in tags])
    return statistics


@given(ENTITIES, st.sampled_from(TagScheme))
def test_every_scheme_converts_to_iob2_without_violations(entities, scheme):
    tags = write(entities, scheme)
    assert to_iob2(tags, scheme) == write(entities, TagScheme.IOB2)
    assert decode([split_tag(tag) for tag in tags], scheme).violations == ()


@given(ENTITIES, st.sampled_from(TagScheme))
def test_the_detected_scheme_reads_what_was_written(entities, scheme):
    tags = write(entities, scheme)
    assert to_iob2(tags, detect(tags).detect()) == write(entities, TagScheme.IOB2)


@pytest.mark.parametrize(
    ("tags", "scheme", "ambiguous"),
    [
        (["O", "B-A", "I-A"], TagScheme.IOB2, False),
        (["O", "I-A", "B-A"], TagScheme.IOB1, False),
        (["I-A", "O", "B-A"], TagScheme.IOB2, True),
        (["B-A", "I-A", "E-A"], TagScheme.IOBES, False),
        (["U-A", "O"], TagScheme.BILOU, False),
        (["O", "O"], TagScheme.IOB2, False),
    ],
)
def test_detection(tags, scheme, ambiguous):
    statistics = detect(tags)
    assert (statistics.detect(), statistics.is_ambiguous) == (scheme, ambiguous)


def test_detection_looks_at_the_whole_file():
    assert detect(["B-A", "I-A"], ["S-A"]).detect() is TagScheme.IOBES
    assert detect(["I-A"], ["B-A"]).is_ambiguous


@pytest.mark.parametrize(
    ("tags", "scheme", "violations", "chunks"),
    [
        (["O", "I-A"], TagScheme.IOB2, (1,), ((1, 2, "A"),)),
        (["B-A", "I-B"], TagScheme.IOB2, (1,), ((0, 1, "A"), (1, 2, "B"))),
        (["O", "B-A"], TagScheme.IOB1, (1,), ((1, 2, "A"),)),
        (["B-A", "O"], TagScheme.IOBES, (1,), ((0, 1, "A"),)),
        (["B-A"], TagScheme.IOBES, (0,), ((0, 1, "A"),)),
        (["E-A", "O"], TagScheme.IOBES, (0,), ((0, 1, "A"),)),
        (["B-A", "E-A", "E-A"], TagScheme.IOBES, (2,), ((0, 2, "A"), (2, 3, "A"))),
        (["S-A", "I-A", "E-A"], TagScheme.IOBES, (1,), ((0, 1, "A"), (1, 3, "A"))),
        (["B-A", "L-A", "E-A"], TagScheme.BILOU, (2,), ((0, 2, "A"), (2, 3, "A"))),
    ],
)
def test_broken_transitions_are_named_and_repaired(tags, scheme, violations, chunks):
    decoded = decode([split_tag(tag) for tag in tags], scheme)
    assert (decoded.violations, decoded.chunks) == (violations, chunks)


@pytest.mark.parametrize("tag", ["", "B", "B-", "NN", "b-A", "X-A", "B-a b"])
def test_what_is_no_tag_is_refused(tag):
    assert split_tag(tag) is None
    with pytest.raises(ValidationError, match="is not a tag"):
        to_iob2([tag], TagScheme.IOB2)
