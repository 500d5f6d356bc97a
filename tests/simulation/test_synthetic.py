"""The synthetic corpus: exact spans, determinism, unlike hospitals, and no help from a lookup."""

import json
import re
from collections import Counter
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ValidationError
from common.records import Note
from simulation.baselines_lexicon import lexicon_baseline, mentions, unseen_share
from simulation.synthetic import LABELS, SyntheticCorpus, generate, write_jsonl
from simulation.synthetic_english import ENGLISH
from simulation.synthetic_style import house_style, neutral

LANGUAGES = ["en", "zh", "mixed"]


@lru_cache
def corpus(language: str = "en", *, public: bool = False, seed: int = 0) -> SyntheticCorpus:
    """The default corpus, and smaller ones of other languages, seeds and audiences."""
    if (language, public, seed) == ("en", False, 0):
        return generate()
    return generate(
        language=language, public=public, seed=seed, notes_per_hospital=60, devel_notes=12, test_notes=60
    )


def every_note(made: SyntheticCorpus) -> tuple[Note, ...]:
    return (*made.all_train, *made.devel, *made.test)


def mix(notes: tuple[Note, ...]) -> dict[str, float]:
    counts = Counter(span.label for note in notes for span in note.spans)
    return {label: counts[label] / counts.total() for label in LABELS}


def iob2(note: Note) -> list[str]:
    """Tag every character; two mentions that touch stay two, because each begins with B."""
    tags = ["O"] * len(note.text)
    for span in note.spans:
        tags[span.start : span.end] = [f"I-{span.label}"] * (span.end - span.start)
        tags[span.start] = f"B-{span.label}"
    return tags


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**40),
    language=st.sampled_from(LANGUAGES),
    public=st.booleans(),
    hospitals=st.integers(1, 5),
    least=st.integers(10, 60),
)
def test_spans_are_exact_ordered_and_tidy(seed, language, public, hospitals, least):
    made = generate(
        hospital_count=hospitals,
        notes_per_hospital=3,
        devel_notes=2,
        test_notes=3,
        seed=seed,
        language=language,
        public=public,
        words=(least, least + 20),
    )
    for note in every_note(made):
        ends = [0]
        for span in note.spans:
            mention = note.text[span.start : span.end]
            assert ends[-1] <= span.start < span.end <= len(note.text)
            assert mention == mention.strip() != ""
            assert "\n" not in mention
            assert span.label in LABELS
            ends.append(span.end)
        assert not re.search(r"[{}<>~]|\[[^\]\n]*\|", note.text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_mentions_fall_on_word_boundaries(language):
    for note in every_note(corpus(language)):
        for span in note.spans:
            for place in (span.start, span.end):
                around = note.text[max(0, place - 1) : place + 1]
                assert not re.fullmatch(r"[A-Za-z0-9]{2}", around), note.note_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_tags_form_valid_iob2_over_the_declared_labels(language):
    made = corpus(language)
    allowed = {"O"} | {f"{prefix}-{label}" for label in made.labels for prefix in "BI"}
    for note in made.test:
        tags = iob2(note)
        assert set(tags) <= allowed
        assert all(
            tag[0] != "I" or before[2:] == tag[2:] for before, tag in zip(["O", *tags], tags, strict=False)
        )


def test_every_type_occurs_in_every_split_and_hospital():
    made = corpus()
    for notes in (*made.train, made.devel, made.test):
        assert min(mix(notes).values()) > 0.02


def test_sizes_ids_and_columns():
    made = generate(hospital_count=3, notes_per_hospital=7, devel_notes=5, test_notes=10)
    assert [len(hospital) for hospital in made.train] == [7, 7, 7]
    assert (len(made.devel), len(made.test)) == (5, 10)
    notes = every_note(made)
    assert len({note.note_id for note in notes}) == len(notes)
    for index, hospital in enumerate(made.train):
        assert {note.columns["hospital"] for note in hospital} == {f"hospital-{index}"}
    assert all(note.document_id == note.note_id and note.columns["note_type"] for note in notes)


def test_equal_seeds_give_equal_notes_and_others_do_not():
    first, again, other = (
        generate(notes_per_hospital=5, devel_notes=5, test_notes=10, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again
    texts = {note.text for note in every_note(first)}
    assert not texts & {note.text for note in every_note(other)}


def test_the_notes_are_the_same_on_every_machine():
    # A change here changes every published number on synthetic notes; say so in the changelog.
    note = generate(hospital_count=1, notes_per_hospital=1, devel_notes=0, test_notes=0).train[0][0]
    assert note.text.splitlines()[0] == "Nursing Record"
    assert mentions([note]) == frozenset({"1g", "iron", "oxygen"})


def test_a_hospital_does_not_depend_on_how_many_others_there_are():
    few = generate(hospital_count=2, notes_per_hospital=5, test_notes=0, devel_notes=0)
    many = generate(hospital_count=6, notes_per_hospital=5, test_notes=0, devel_notes=0)
    assert few.train == many.train[:2]


def test_patients_have_several_notes_and_stay_in_one_split():
    made = corpus()
    of_train = Counter(note.patient_id for note in made.all_train)
    assert max(of_train.values()) > 1
    held_out = {note.patient_id for note in (*made.devel, *made.test)}
    assert not held_out & set(of_train)
    assert not {note.patient_id for note in made.devel} & {note.patient_id for note in made.test}


def test_sections_are_copied_forward_within_a_patient_only():
    lines: dict[str, set[str]] = {}
    copied = 0
    for note in corpus().all_train:
        body = [line for line in note.text.splitlines()[2:] if len(line.split()) > 8]
        seen = lines.setdefault(str(note.patient_id), set())
        copied += any(line in seen for line in body)
        seen.update(body)
    assert copied > 20


def test_hospitals_differ_in_entity_mix():
    mixes = [mix(hospital) for hospital in corpus().train]
    for index, one in enumerate(mixes):
        for other in mixes[index + 1 :]:
            # Total variation distance between two hospitals.
            assert sum(abs(one[label] - other[label]) for label in LABELS) / 2 > 0.08


def test_skew_zero_leans_to_nothing_and_more_skew_leans_more():
    flat, leaning, steep = (house_style(ENGLISH, 1, seed=0, skew=skew) for skew in (0.0, 1.0, 4.0))
    assert flat == neutral(flat)
    assert max(leaning.note_types.values()) > 0.3
    assert max(leaning.note_types.values()) < max(steep.note_types.values())
    assert max(leaning.tilt.values()) < max(steep.tilt.values())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_hospitals_differ_in_style(language):
    made = corpus(language)
    words = [
        Counter(w for note in hospital for w in re.split(r"(\s+)", note.text)) for hospital in made.train
    ]
    for index, one in enumerate(words):
        own = {w for w, count in one.items() if count > 5}
        for other in words[index + 1 :]:
            assert len(own - set(other)) > 10


@pytest.mark.parametrize(("language", "seed"), [("en", 0), ("en", 1), ("zh", 0), ("mixed", 0)])
def test_a_lookup_stays_below_the_limit(language, seed, record_property):
    made = corpus(language, seed=seed)
    score, unseen = lexicon_baseline(made.all_train, made.test), unseen_share(made.all_train, made.test)
    record_property("lexicon_f1", score)
    record_property("unseen_share", unseen)
    assert 0.15 < score < 0.7
    assert 0.4 < unseen < 0.9


def test_a_lookup_stays_below_the_limit_with_twice_the_notes():
    made = generate(notes_per_hospital=240, test_notes=60, devel_notes=0)
    assert lexicon_baseline(made.all_train, made.test) < 0.7
    assert unseen_share(made.all_train, made.test) > 0.4


def test_the_same_characters_are_an_entity_here_and_none_there():
    inside, outside = Counter[str](), Counter[str]()
    for note in corpus().all_train:
        marked = {(span.start, span.end) for span in note.spans}
        for found in re.finditer(r"\b(cold|depression|discharge|lead|potassium|iron|heart|RA)\b", note.text):
            (inside if found.span() in marked else outside)[found[0]] += 1
    assert {"cold", "depression", "potassium", "iron"} <= set(inside) & set(outside)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("seed", [0, 5])
def test_public_notes_share_no_mention_with_the_hospitals(language, seed):
    public = mentions(every_note(corpus(language, public=True, seed=seed)))
    hospitals = mentions(every_note(corpus(language, seed=seed)))
    assert len(public) > 100
    assert not public & hospitals
    ids = {note.note_id for note in every_note(corpus(language, seed=seed))}
    assert not ids & {note.note_id for note in every_note(corpus(language, public=True, seed=seed))}


def test_mixed_hospitals_alternate_languages():
    made = corpus("mixed")
    assert [hospital[0].columns["language"] for hospital in made.train] == ["en", "zh", "en", "zh"]
    assert {note.columns["language"] for note in made.test} == {"en", "zh"}


def test_patient_identity_is_written_but_is_no_entity():
    for note in corpus().test:
        first = min((span.start for span in note.spans), default=len(note.text))
        assert first >= len("\n".join(note.text.splitlines()[:2]))
        assert re.search(r"\d{7}", note.text.splitlines()[1])


def test_jsonl_holds_what_was_generated(tmp_path):
    made = generate(hospital_count=2, notes_per_hospital=4, devel_notes=2, test_notes=3, language="mixed")
    write_jsonl(made, tmp_path / "corpus")
    assert sorted(p.name for p in (tmp_path / "corpus").iterdir()) == [
        "devel.jsonl",
        "test.jsonl",
        "train.jsonl",
    ]
    lines = (tmp_path / "corpus/train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8
    for line, note in zip(lines, made.all_train, strict=True):
        record = json.loads(line)
        assert (record["id"], record["text"], record["patient_id"]) == (
            note.note_id,
            note.text,
            note.patient_id,
        )
        spans = [(s["start"], s["end"], s["label"]) for s in record["spans"]]
        assert spans == [(s.start, s.end, s.label) for s in note.spans]
        assert record["hospital"] == note.columns["hospital"]
        assert record["note_type"] == note.columns["note_type"]
        assert record["document_id"] == note.document_id


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    made = generate(hospital_count=1, notes_per_hospital=2, devel_notes=0, test_notes=0)
    write_jsonl(made, tmp_path)
    before = (tmp_path / "train.jsonl").read_bytes()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_jsonl(
            generate(hospital_count=1, notes_per_hospital=5, test_notes=0, devel_notes=0, seed=9), tmp_path
        )
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*partial"))


def test_writing_to_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ValidationError, match="name a folder"):
        write_jsonl(corpus(), tmp_path / "taken")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"language": "eng"}, "language is 'eng'.*Did you mean 'en'"),
        ({"hospital_count": 0}, "hospital_count is 0"),
        ({"notes_per_hospital": -1}, "notes_per_hospital is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"words": (50, 20)}, r"words\[1\] is 20"),
        ({"words": (50,)}, "least and a largest"),
        ({"skew": -0.5}, "skew is -0.5"),
        ({"test_notes": True}, "test_notes is True"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValidationError, match=sentence):
        generate(**arguments)


def test_note_text_is_not_in_reprs():
    made = generate(hospital_count=1, notes_per_hospital=1, devel_notes=0, test_notes=0)
    note = made.train[0][0]
    shown = repr(made)
    assert all(note.text[span.start : span.end] not in shown for span in note.spans)
