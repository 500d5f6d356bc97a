"""Stages keep entities on their characters, keep negations, and look across units only where that is allowed."""

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.preprocessing import Dropped, Pipeline, Rejected
from client.preprocessing_build import NoteLength, Recipe, prepare_notes, recipe_of
from client.preprocessing_duplicates import BYTES_PER_NOTE, NearDuplicates
from client.preprocessing_negation import cues
from client.preprocessing_parts import Boilerplate, RepeatedParts, SectionHeaders, read_phrases
from client.preprocessing_text import LineBreakRepair, UnicodeCleaning, WhiteSpace
from common.errors import DataError, ValidationError
from common.plan import Plan
from common.preparation import StageChoice, require_stages
from common.records import EntitySpan, Note
from common.text_edits import EditConflict
from common.word_splitter import WordSplitter

WRAPPED = "The patient was admitted with shortness of breath and a long history of"


def note(text: str, *mentions: str, note_id: str = "n1", patient: str = "p1") -> Note:
    spans = [EntitySpan(start=text.index(m), end=text.index(m) + len(m), label="T") for m in mentions]
    return Note(note_id=note_id, text=text, spans=tuple(sorted(spans)), patient_id=patient)


def mentions(value: Note) -> list[str]:
    return [value.text[span.start : span.end] for span in value.spans]


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [
        (UnicodeCleaning(), "e\u0301tude Å", "étude Å"),
        (UnicodeCleaning(), "ﬁbrosis oﬀ ﬄ", "fibrosis off ffl"),
        (UnicodeCleaning(), "a\x00b\x07 c\x0cd", "a b c\nd"),
        (UnicodeCleaning(), "no\u200bfever", "no fever"),
        (UnicodeCleaning(), "no\u200efever", "no fever"),
        (UnicodeCleaning(), "no\u200b\u200dfever", "no fever"),
        (UnicodeCleaning(), "hyper\u00adtension", "hypertension"),
        (UnicodeCleaning(), "心\u200b肌", "心肌"),
        (UnicodeCleaning(), "👩🏽\u200d⚕️ ok", "👩🏽\u200d⚕️ ok"),
        (UnicodeCleaning(), "می\u200cخواهم", "می\u200cخواهم"),
        (LineBreakRepair(), "pneumo-\r\nthorax", "pneumothorax"),
        (LineBreakRepair(), "a non-\nsmoker", "a non-smoker"),
        (LineBreakRepair(), "the ward-\nno fever", "the ward-\nno fever"),
        (LineBreakRepair(), "a\r\nb\rc", "a\nb\nc"),
        (LineBreakRepair(), f"{WRAPPED}\nheart failure.", f"{WRAPPED} heart failure."),
        (LineBreakRepair(), f"{WRAPPED} no\nheart failure.", f"{WRAPPED} no\nheart failure."),
        (LineBreakRepair(), f"{WRAPPED}\nno fever.", f"{WRAPPED}\nno fever."),
        (LineBreakRepair(), f"{WRAPPED}.\nheart", f"{WRAPPED}.\nheart"),
        (LineBreakRepair(), f"{WRAPPED}\nHeart", f"{WRAPPED}\nHeart"),
        (LineBreakRepair(), "short\nlines stay", "short\nlines stay"),
        (LineBreakRepair(wrap_width=20), "心" * 30 + "\n" + "肌", "心" * 30 + "肌"),
        (LineBreakRepair(wrap_width=20), "心" * 30 + "\n无肌", "心" * 30 + "\n无肌"),
        (WhiteSpace(), "  a \t b\u00a0c  \n\n\n\n d  ", "a b c\n\nd"),
        (WhiteSpace(), "a  \nb", "a\nb"),
        (Boilerplate(phrases=["Signed by"]), "Fever. SIGNED\nby X. Designed by", "Fever.  X. Designed by"),
        (Boilerplate(phrases=["仅供本院"]), "发热仅供本院。", "发热。"),
        (SectionHeaders(names={"HPI": "History"}), "x\nHPI:\nfever", "x\n\nHistory:\nfever"),
        (SectionHeaders(), "x\nALLERGIES\ny", "x\n\nALLERGIES\ny"),
        (SectionHeaders(), "x\nNO ALLERGIES\ny", "x\nNO ALLERGIES\ny"),
    ],
)
def test_what_a_stage_does(stage, before, after):
    assert stage.apply(note(before)).text == after
    assert bool(stage.counts().get("notes_changed")) is (before != after)


def test_entities_keep_their_characters_and_borders_are_left_alone():
    cleaned = UnicodeCleaning().apply(note("no\u200bﬁbrosis of e\u0301tat", "ﬁbrosis", "tat"))
    assert mentions(cleaned) == ["fibrosis", "tat"]
    stage = UnicodeCleaning()
    split = note("cafe\u0301", "cafe")
    assert stage.apply(split).text == split.text
    assert stage.counts() == {"left_at_entity": 1}


def test_a_note_of_white_space_alone_is_refused():
    with pytest.raises(EditConflict, match="without text"):
        WhiteSpace().apply(note(" \n "))


def test_boilerplate_never_takes_an_entity_or_an_unlisted_negation():
    stage = Boilerplate(phrases=["Printed on ward"])
    kept = note("Printed on ward B", "ward")
    assert stage.apply(kept) is kept
    assert stage.counts() == {"left_at_entity": 1}
    with pytest.raises(ValidationError, match="negation cue"):
        Boilerplate(phrases=["Not for distribution"])
    allowed = Boilerplate(phrases=["Not for distribution"], allow_negation=True)
    assert allowed.apply(note("Fever.\nNot for distribution\nx")).text == "Fever.\n\nx"
    inside = note("Fever. Not for distribution of x")
    assert allowed.apply(inside) is inside
    assert allowed.counts()["left_negation"] == 1


@pytest.mark.parametrize("phrases", [[], ["a"], ["  "]])
def test_phrases_that_would_be_everywhere_are_refused(phrases):
    with pytest.raises(ValidationError):
        Boilerplate(phrases=phrases)


def test_an_empty_line_in_a_file_of_phrases_is_listed(tmp_path):
    path = tmp_path / "phrases.txt"
    path.write_text("# remarks\nSigned by\n\nPrinted on\n", encoding="utf-8")
    rejects = []
    assert read_phrases(path, on_reject=rejects.append) == ["Signed by", "Printed on"]
    assert [(r.reason, r.line) for r in rejects] == [("empty-phrase", 3)]
    with pytest.raises(DataError, match="line 3"):
        read_phrases(path)


BLOCK = "On {} the patient reports {} cough and fever in the evening, with sputum."


def test_a_repeated_part_goes_with_its_mentions_and_the_first_stays():
    text = BLOCK.format("3 May", "some") + "\n\nnew line\n\n" + BLOCK.format("3 May", "some")
    spans = [EntitySpan(start=i, end=i + 5, label="T") for i in (text.index("cough"), text.rindex("cough"))]
    stage = RepeatedParts()
    after = stage.apply(Note(note_id="n", text=text, spans=tuple(spans)))
    assert after.text.count("cough") == 1
    assert mentions(after) == ["cough"]
    assert stage.counts() == {"parts": 1, "mentions": 1, "notes_changed": 1}


@pytest.mark.parametrize("second", ["no", "without"])
def test_a_part_that_negates_otherwise_is_no_repetition(second):
    text = BLOCK.format("3 May", "some") + "\n\n" + BLOCK.format("3 May", second)
    kept = note(text)
    assert RepeatedParts(threshold=0.5).apply(kept).text == text


def test_a_part_with_other_mentions_is_no_repetition():
    text = BLOCK.format("3 May", "some") + "\n\n" + BLOCK.format("3 May", "some")
    kept = Note(note_id="n", text=text, spans=(EntitySpan(start=0, end=2, label="T"),))
    stage = RepeatedParts()
    assert stage.apply(kept) is kept
    assert stage.counts() == {"left_differing": 1}


LONG = " ".join(f"word{i} reading{i * 7} of a fever chart" for i in range(30))


@pytest.mark.parametrize(
    ("within", "patient", "dropped"), [("site", "p2", True), ("unit", "p1", True), ("unit", "p2", False)]
)
def test_near_duplicates_are_looked_for_where_the_stage_may_look(within, patient, dropped):
    stage = NearDuplicates(within=within)
    stage.apply(note(LONG))
    copy = note(LONG + " seen again", note_id="n2", patient=patient)
    if dropped:
        with pytest.raises(Dropped) as caught:
            stage.apply(copy)
        assert caught.value.reason == "near-duplicate"
    else:
        assert stage.apply(copy) is copy


def test_a_copy_with_another_negation_stays():
    stage = NearDuplicates(within="site")
    stage.apply(note(LONG))
    other = note(LONG + " no embolism")
    assert stage.apply(other) is other


def test_a_unit_without_id_is_rejected():
    with pytest.raises(Rejected) as caught:
        NearDuplicates(unit="document").apply(note(LONG))
    assert caught.value.reason == "no-document-id"


def test_the_index_finds_copies_among_many_and_stays_small():
    stage = NearDuplicates(within="site")
    texts = [" ".join(f"t{i}w{(i * 37 + j * j) % 9973}" for j in range(60)) for i in range(1500)]
    for i, text in enumerate(texts):
        stage.apply(note(text, note_id=str(i)))
    assert stage.index_bytes <= BYTES_PER_NOTE * 1500
    for i in range(0, 1500, 100):
        with pytest.raises(Dropped):
            stage.apply(note(texts[i] + " and more", note_id="copy"))


WORDS = st.lists(st.sampled_from(["fever", "cough", "no", "rash", "pain", "ward"]), min_size=8, max_size=30)


@given(st.lists(st.tuples(st.sampled_from("ab"), WORDS), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_within_units_the_other_units_change_nothing(drawn):
    """Formal guarantee: what is kept of a unit is a function of that unit's notes."""
    notes = [note(" ".join(words), note_id=str(i), patient=p) for i, (p, words) in enumerate(drawn)]
    recipe = Recipe(stages=require_stages("s", ["whitespace", "near_duplicates"]), privacy_unit="patient")
    together = [n for n in Pipeline(recipe.build()).run(notes) if n.patient_id == "a"]
    alone = list(Pipeline(recipe.build()).run(n for n in notes if n.patient_id == "a"))
    assert together == alone


def test_a_private_plan_refuses_a_stage_across_units(make_plan):
    across = [{"name": "near_duplicates", "within": "site"}]
    private = {"privacy__noise_multiplier": 1.0, "privacy__steps": 4, "training__physical_tokens": 64}
    assert make_plan(preparation__stages=across).preparation.stages[0].is_across_units
    with pytest.raises(ValidationError, match='within = "site".*function of one privacy unit'):
        make_plan(preparation__stages=across, **private)
    plan = make_plan(preparation__stages=["near_duplicates"], **private)
    with pytest.raises(ValidationError, match="the site's preparation"):
        recipe_of(make_plan(**private), stages=require_stages("s", across))
    (stage, *_) = [s for s in recipe_of(plan).build() if s.name == "near_duplicates"]
    assert stage.scope == "unit"


def test_under_privacy_the_unit_is_the_plans(make_plan):
    private = {"privacy__noise_multiplier": 1.0, "privacy__steps": 4, "training__physical_tokens": 64}
    plan = make_plan(preparation__stages=[{"name": "near_duplicates", "unit": "patient"}], **private)
    copies = [note(LONG, note_id="a"), note(LONG, note_id="b")]
    # The plan's unit is the record, so two records of one patient are two units.
    assert [n.note_id for n in prepare_notes(copies, recipe_of(plan))] == ["a", "b"]


def test_a_plan_carries_its_stages_through_toml_and_hash(make_plan, tmp_path):
    stages = [
        "unicode",
        {"name": "sections", "names": {"HPI": "History"}},
        {"name": "boilerplate", "phrases": ["Signed by"]},
    ]
    plan = make_plan(preparation__stages=stages)
    again = Plan.from_table(plan.to_table())
    assert again == plan
    assert again.hash == plan.hash != make_plan().hash
    assert plan.preparation.stages[1].to_table() == stages[1]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("unicode", "list of stages"),
        (["unicod"], "Did you mean 'unicode'"),
        ([{"name": "whitespace", "width": 3}], "unknown key 'width'"),
        (["unicode", "unicode"], "twice"),
        ([{"name": "near_duplicates", "threshold": 2}], "threshold"),
        ([3], "a stage's name"),
    ],
)
def test_stages_that_cannot_be_are_refused(make_plan, stages, said):
    with pytest.raises(ValidationError, match=said):
        make_plan(preparation__stages=stages)


def test_a_boilerplate_stage_without_phrases_is_refused_when_it_is_built(make_plan):
    with pytest.raises(ValidationError, match="has no phrases"):
        recipe_of(make_plan(preparation__stages=["boilerplate"]))


class Refusing:
    """A stage that rejects every second note."""

    name = "refusing"
    scope = "unit"

    def __init__(self, error: type[Rejected]) -> None:
        self.error = error

    def apply(self, value: Note) -> Note:
        if value.note_id == "bad":
            raise self.error("bad-luck", note_id=value.note_id)
        return value

    def counts(self):
        return {}


@pytest.mark.parametrize(("error", "stops"), [(Rejected, True), (Dropped, False)])
def test_a_strict_pipeline_stops_for_what_is_bad_and_not_for_copies(error, stops):
    notes = [note("a", note_id="bad"), note("b", note_id="good")]
    listed = []
    pipeline = Pipeline([Refusing(error)], on_reject=lambda *reject: listed.append(reject))
    assert [n.note_id for n in pipeline.run(notes)] == ["good"]
    assert listed == [("bad", "refusing", "bad-luck")]
    assert pipeline.rejects() == {("refusing", "bad-luck"): 1}
    strict = Pipeline([Refusing(error)], strict=True).run(notes)
    if stops:
        with pytest.raises(error):
            next(strict)
    else:
        assert next(strict).note_id == "good"


def test_training_notes_that_are_all_rejected_are_an_error():
    with pytest.raises(DataError, match="rejects every note"):
        prepare_notes([note("x")], Recipe(stages=(StageChoice(name="unicode"),)))


def test_a_note_of_one_character_is_too_short():
    with pytest.raises(Rejected, match="too-short"):
        NoteLength().apply(note(" x "))


PIECES = st.sampled_from(
    [
        "fever", "no", "non", "denies", "não", "sin", "kein", "无", "否认", "心肌梗死", "e\u0301", "é", "ﬁbrosis", "ﬀ",
        "👩🏽‍⚕️", "🇪🇸", "👍🏿",
        "\r\n", "\n", "\n\n", "\r", " ", "  ", "\t", "\u00a0", "\u200b", "\u200d", "\u00ad", "\ufeff",
        "\u200e", "\x00", "\x0c",
        "-", "-\n", ".", ":", "Printed on", "HPI:", "ALLERGIES", "\u1112\u1161\u11ab", "Å", "क्\u200dष",
        " the patient was seen again on the ward in the evening of the day", "\u0301", "3", "mg/l",
    ]
)  # fmt: skip


@st.composite
def made_notes(draw: st.DrawFn) -> Note:
    """Draw a note of awkward pieces with entities anywhere."""
    text = "".join(draw(st.lists(PIECES, min_size=1, max_size=40)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8, unique=True)))
    spans = [
        EntitySpan(start=a, end=b, label="T") for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b
    ]
    words = WordSplitter().split(text) if draw(st.booleans()) else None
    return Note(note_id="n", text=text, spans=tuple(spans), words=words)


def stages():
    """All cleaning stages, with options that make them act often."""
    return [
        UnicodeCleaning(),
        LineBreakRepair(wrap_width=20),
        WhiteSpace(),
        Boilerplate(phrases=["Printed on"]),
        SectionHeaders(names={"HPI": "History"}),
        RepeatedParts(min_words=3, threshold=0.5),
    ]


def skeleton(text: str) -> str:
    """Return the letters of a text that cleaning may not touch, in one form."""
    for ligature in "ﬀﬁﬂﬃﬄﬅﬆ":
        text = text.replace(ligature, unicodedata.normalize("NFKC", ligature))
    composed = unicodedata.normalize("NFD", text)
    # Headers are renamed and joined words lose their hyphen.
    return "".join(c for c in composed if unicodedata.category(c)[0] in "LMNS")


def check(drawn: Note) -> None:
    """Entities hold the characters that they held, and every negation cue is still there."""
    for stage in stages():
        try:
            after = stage.apply(drawn)
        except EditConflict:
            continue
        lost = stage.counts().get("mentions", 0)
        assert len(after.spans) == len(drawn.spans) - lost
        if not lost and stage.name != "sections":
            for old, new in zip(drawn.spans, after.spans, strict=True):
                before, now = drawn.text[old.start : old.end], after.text[new.start : new.end]
                assert skeleton(now) in (skeleton(before), skeleton(before.replace("Printed on", "")))
        ends = 0
        for span in after.spans:
            assert ends <= span.start < span.end <= len(after.text)
            ends = span.end
        if after.words is not None:
            assert all(after.text[a:b].strip() for a, b in after.words)
        before_cues = [drawn.text[a:b].casefold() for a, b in cues(drawn.text)]
        after_cues = [after.text[a:b].casefold() for a, b in cues(after.text)]
        if stage.name == "repeated_parts":
            assert set(before_cues) == set(after_cues)
        else:
            remaining = iter(after_cues)
            assert all(cue in remaining for cue in before_cues), (stage.name, before_cues, after_cues)


SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@given(made_notes())
@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
def test_every_stage_keeps_entities_and_negations(drawn):
    check(drawn)


@pytest.mark.slow
@given(made_notes())
@settings(max_examples=10_000, deadline=None, suppress_health_check=SLOW)
def test_every_stage_keeps_entities_and_negations_on_ten_thousand_notes(drawn):
    check(drawn)


@given(made_notes())
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
def test_cleaning_twice_is_cleaning_once(drawn):
    for stage in (UnicodeCleaning(), WhiteSpace()):
        try:
            once = stage.apply(drawn)
        except EditConflict:
            return
        assert stage.apply(once).text == once.text or stage.counts().get("left_at_entity")
