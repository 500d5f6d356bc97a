"""PHI goes, entities stay on their characters, and nothing is asked of the network."""

from __future__ import annotations

import itertools
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.deidentification import MASK, Deidentification
from client.deidentification_engine import PhiFinder, SiteLists
from client.phi import PhiSpan, merged
from client.preprocessing import Pipeline, Rejected
from client.surrogates import Surrogates
from common.errors import ValidationError
from common.records import EntitySpan, Note
from common.text_edits import EditConflict

ENGLISH = (
    "Patient Name: Joan A. Smithson, MRN: A-1234567, DOB 03/04/1950. A 93-year-old woman seen by Dr. Alice Brownlee "
    "on January 5, 2016. Phone (212) 736-5000, joan.smithson@ward.local, https://example.org/x. Asthma."
)


@pytest.fixture(scope="module")
def english() -> PhiFinder:
    return PhiFinder(languages=["en"])


@pytest.fixture(scope="module")
def all_languages() -> PhiFinder:
    return PhiFinder(languages=["en", "es", "zh"])


def found(finder: PhiFinder, text: str) -> set[tuple[str, str]]:
    return {(text[one.start : one.end], one.kind) for one in finder.find(text)}


def surrogates(secret: bytes = b"s" * 32) -> Surrogates:
    return Surrogates(secret=secret, languages=["en"], day_first=False)


@pytest.mark.parametrize(
    ("text", "phi", "kind"),
    [
        (ENGLISH, "Joan A. Smithson", "PERSON"),
        (ENGLISH, "Alice Brownlee", "PERSON"),
        (ENGLISH, "A-1234567", "ID"),
        (ENGLISH, "03/04/1950", "DATE"),
        (ENGLISH, "January 5, 2016", "DATE"),
        (ENGLISH, "93", "AGE"),
        (ENGLISH, "(212) 736-5000", "PHONE"),
        (ENGLISH, "joan.smithson@ward.local", "EMAIL"),
        ("Nombre: Estefanía.\nApellidos: De Miguel Rivera.\n", "De Miguel Rivera", "PERSON"),
        ("Edad: 1 mes Sexo: H.", "1 mes", "AGE"),
        ("Domicilio: Calle Mayor, 23, 1D.\nCP: 28035.", "28035", "LOCATION"),
        ("Ingresa el 12 de enero de 2016 por fiebre.", "12 de enero de 2016", "DATE"),
        ("NºCol: 28 28 20943.", "28 28 20943", "ID"),
        ("患者姓名：王小明，男，93岁，住院号：ZY20160012", "王小明", "PERSON"),
        ("患者姓名：王小明，男，93岁，住院号：ZY20160012", "ZY20160012", "ID"),
        ("于2016年1月5日入院", "2016年1月5日", "DATE"),
        ("于2016-01-05入院", "2016-01-05", "DATE"),
        ("身份证号11010519491231002X", "11010519491231002X", "ID"),
        ("电话13812345678。", "13812345678", "PHONE"),
    ],
)
def test_phi_of_three_languages_is_found(all_languages, text, phi, kind):
    assert (phi, kind) in found(all_languages, text)


@pytest.mark.parametrize(
    "text",
    [
        "Blood pressure 120/80, HbA1c 7.2 %, 5 mg twice, 10-20 mg, 1/2 tablet.",
        "Mild asthma without wheeze; no history of sepsis.",
        "血压120/80mmHg，白细胞12.3。",
    ],
)
def test_clinical_numbers_are_no_phi(all_languages, text):
    assert found(all_languages, text) == set()


def test_a_site_s_lists_and_patterns_are_found_and_its_eponyms_left():
    lists = SiteLists(
        staff=("Parkinson", "Li Wei"), wards=("Cedar ward", "7病区"), mrn_patterns=(r"\bK\d{5}\b",)
    )
    finder = PhiFinder(languages=["en"], lists=lists)
    assert found(finder, "cedar  ward, K12345, li wei, 7病区") == {
        ("cedar  ward", "WARD"),
        ("K12345", "ID"),
        ("li wei", "PERSON"),
        ("7病区", "WARD"),
    }
    allowed = PhiFinder(languages=["en"], lists=SiteLists(staff=("Parkinson",), allowed=("parkinson",)))
    assert found(allowed, "Parkinson disease") == set()


@pytest.mark.parametrize(("pattern", "told"), [("(", "not a pattern"), (r"\d*", "matches an empty text")])
def test_a_pattern_that_cannot_be_used_is_refused(pattern, told):
    with pytest.raises(ValidationError, match=told):
        PhiFinder(languages=["en"], lists=SiteLists(mrn_patterns=(pattern,)))


def test_a_pattern_that_takes_too_long_rejects_the_note(monkeypatch):
    monkeypatch.setattr("client.deidentification_recognizers.SECONDS_PER_PATTERN", 0.05)
    finder = PhiFinder(languages=["en"], lists=SiteLists(mrn_patterns=(r"(?:a+b?)+(?:a|b)*c",)))
    with pytest.raises(Rejected, match="pattern-too-slow"):
        finder.find("a" * 3000)


SPANS = st.builds(
    lambda start, size, kind, score: PhiSpan(start=start, end=start + size, kind=kind, score=score),
    st.integers(0, 60),
    st.integers(1, 20),
    st.sampled_from(["PERSON", "DATE", "ID"]),
    st.sampled_from([0.5, 0.9]),
)


@given(st.lists(SPANS, max_size=12))
def test_every_character_that_anything_found_is_covered(spans):
    result = merged(spans)
    covered = {i for one in result for i in range(one.start, one.end)}
    assert covered == {i for one in spans for i in range(one.start, one.end)}
    assert all(a.end <= b.start for a, b in itertools.pairwise(result))


def note_with(text: str, entity: str, **fields: str) -> Note:
    start = text.index(entity)
    span = EntitySpan(start=start, end=start + len(entity), label="Disease")
    return Note(note_id="n1", text=text, spans=(span,), **fields)


@pytest.mark.parametrize("mode", ["mask", "tag", "surrogate"])
def test_no_phi_stays_and_the_entity_stays_on_its_characters(english, mode):
    stage = Deidentification(
        english.find, mode=mode, surrogates=surrogates() if mode == "surrogate" else None
    )
    clean = stage.apply(note_with(ENGLISH, "Asthma", patient_id="p1"))
    for phi in (
        "Smithson",
        "1234567",
        "03/04/1950",
        "93-year",
        "Brownlee",
        "January 5, 2016",
        "736-5000",
        "ward.local",
    ):
        assert phi not in clean.text
    (span,) = clean.spans
    assert clean.text[span.start : span.end] == "Asthma"
    assert {"mask": MASK, "tag": "[PERSON]", "surrogate": "90-year-old"}[mode] in clean.text
    assert stage.counts()["found.PERSON"] == 2
    assert stage.per_thousand_tokens()["PERSON"] == pytest.approx(2000 / stage.counts()["tokens"])


def test_kept_types_stay_and_are_counted(english):
    stage = Deidentification(english.find, mode="tag", keep=["AGE"])
    assert "93-year-old" in stage.apply(note_with(ENGLISH, "Asthma")).text
    assert stage.counts()["kept"] == 1


def test_phi_that_crosses_an_entity_rejects_the_note_and_the_rest_goes_on(english):
    crossing = note_with("Seen by Dr. Alice Brownlee disease clinic.", "Brownlee disease")
    stage = Deidentification(english.find, mode="tag")
    with pytest.raises(EditConflict) as told:
        stage.apply(crossing)
    assert "Brownlee" not in str(told.value)
    rejects: list[tuple[str, str, str]] = []
    pipeline = Pipeline([stage], on_reject=lambda *row: rejects.append(row))
    kept = list(pipeline.run([crossing, note_with(ENGLISH, "Asthma")]))
    assert [note.note_id for note in kept] == ["n1"]
    assert rejects == [("n1", "deidentify", "edit-crosses-entity")]
    assert stage.counts()["notes"] == 1, "a rejected note is not counted as changed"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("Admitted 02/31/2016 with asthma", "impossible-date"), ("Age: 171, asthma", "impossible-age")],
)
def test_dates_and_ages_that_cannot_be_reject_the_note(english, text, reason):
    stage = Deidentification(english.find, mode="surrogate", surrogates=surrogates())
    with pytest.raises(Rejected, match=reason):
        stage.apply(note_with(text, "asthma"))


def test_a_mode_and_its_surrogates_belong_together(english):
    with pytest.raises(ValidationError, match="surrogates are needed in mode surrogate"):
        Deidentification(english.find, mode="surrogate")
    with pytest.raises(ValidationError, match=r"deidentification\.mode"):
        Deidentification(english.find, mode="redact")


@pytest.fixture
def no_network(monkeypatch):
    """Every socket beyond loopback and UNIX, and every name that is looked up, fails the test."""
    asked: list[object] = []
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"):
            return connect(self, address)
        asked.append(address)
        raise OSError("no network")

    def lookup(host, *rest, **named):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


def test_de_identification_opens_no_connection(no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("TLDEXTRACT_CACHE", str(tmp_path))
    finder = PhiFinder(languages=["en", "es", "zh"])
    stage = Deidentification(finder.find, mode="surrogate", surrogates=surrogates())
    stage.apply(note_with(ENGLISH + " Mail b.c@hospital.example.com", "Asthma"))
    assert no_network == []


def test_the_network_test_would_notice_presidio_s_own_e_mail_recogniser(no_network, tmp_path):
    import tldextract
    from presidio_analyzer.predefined_recognizers import EmailRecognizer

    # As it comes, but with a cache of its own: what another test fetched must not hide the fetch.
    fetching = tldextract.TLDExtract(cache_dir=str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tldextract.extract", fetching)
        EmailRecognizer().analyze("a.b@example.com", ["EMAIL_ADDRESS"], None)
    assert no_network != []


PARTS = [*"abZ 09.-/:\r\n@é", "e\u0301", "👩🏽‍⚕️", "患", "年", "Dr. Smith ", "03/04/2016 "]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.data())
def test_entities_survive_on_any_text(text, data):
    finder = _FINDERS.setdefault("en", PhiFinder(languages=["en"]))
    spans = finder.find(text)
    free = [i for i in range(len(text)) if not any(one.start <= i < one.end for one in spans)]
    if not free:
        return
    place = data.draw(st.sampled_from(free))
    note = Note(note_id="n", text=text, spans=(EntitySpan(start=place, end=place + 1, label="X"),))
    clean = Deidentification(finder.find, mode="tag").apply(note)
    assert clean.text[clean.spans[0].start : clean.spans[0].end] == text[place]


_FINDERS: dict[str, PhiFinder] = {}


def test_a_secret_is_in_no_repr():
    assert "s" * 8 not in repr(surrogates())
