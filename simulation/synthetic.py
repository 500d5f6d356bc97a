"""Synthetic clinical notes that are worth training on: several hospitals, one devel and one test set.

Each hospital has its own note types, entity mix, house style and dialect (a share of the sentence templates
and of the word lists), patients with several notes, copied-forward sections, typing errors and PHI from
Faker. Devel and test are written in every hospital's style, by other patients, with the whole grammar, and
about half of their mentions are reserved for them by a keyed hash: no hospital ever writes those.

The public corpus (`public=True`) has word lists, sentences and styles of its own, so that it shares no
mention with the hospitals, with devel or with test; it is for a warm-up before private training.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faker import Faker

from common.errors import ValidationError
from common.records import Note
from common.validation import require_choice, require_float, require_int
from simulation.synthetic_chinese import CHINESE
from simulation.synthetic_english import ENGLISH
from simulation.synthetic_lexicon import LABELS, Lexicon, MentionGrammar
from simulation.synthetic_notes import NoteWriter
from simulation.synthetic_public import PUBLIC_CHINESE, PUBLIC_ENGLISH
from simulation.synthetic_style import HouseStyle, house_style, neutral

LANGUAGES: tuple[str, ...] = ("en", "zh", "mixed")
_DIALECT_SHARE = 0.6
_MOST_NOTES = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticCorpus:
    """A generated corpus.

    Attributes:
        train: The notes of each hospital.
        devel: Notes for choosing, in all styles, of patients of their own.
        test: Notes for the report, in all styles, of patients of their own.
        labels: The entity types of the schema, sorted.
    """

    train: tuple[tuple[Note, ...], ...]
    devel: tuple[Note, ...]
    test: tuple[Note, ...]
    labels: tuple[str, ...] = LABELS

    @property
    def all_train(self) -> tuple[Note, ...]:
        """The notes of every hospital, hospital by hospital."""
        return tuple(note for hospital in self.train for note in hospital)


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """The settings that every note of a corpus shares."""

    seed: int
    public: bool
    lexicons: tuple[Lexicon, ...]
    words: tuple[int, int]
    skew: float
    fakers: Mapping[str, Faker] = field(repr=False)

    def lexicon(self, hospital: int) -> Lexicon:
        """Return what the hospital writes with; in a mixed corpus languages alternate."""
        return self.lexicons[hospital % len(self.lexicons)]


def generate(
    *,
    hospital_count: int = 4,
    notes_per_hospital: int = 120,
    seed: int = 0,
    language: str = "en",
    devel_notes: int = 60,
    test_notes: int = 160,
    words: tuple[int, int] = (30, 70),
    skew: float = 1.0,
    public: bool = False,
) -> SyntheticCorpus:
    """Generate a corpus; equal arguments give equal notes on every machine.

    Args:
        hospital_count: Hospitals, 1 to 1,000.
        notes_per_hospital: Training notes of each, 1 or more.
        seed: Keys every choice, 0 or more.
        language: `en`, `zh`, or `mixed` (hospitals alternate, beginning with English).
        devel_notes: Notes for choosing, 0 or more.
        test_notes: Notes for the report, 0 or more.
        words: Least and largest length to aim at; title, headers and a copied section come on top.
        skew: How unlike the hospitals are in what they write about: 0 alike, 1 clearly unlike, at most 10.
        public: Whether to write the disjoint public corpus instead. Its hospitals are house styles;
            four or more make a broad corpus.

    Returns:
        The corpus. Every note has `document_id`, `patient_id` and the columns `hospital`, `note_type` and
        `language`.

    Raises:
        ValidationError: An argument is outside its range.
    """
    require_int("hospital_count", hospital_count, minimum=1, maximum=1000)
    require_int("notes_per_hospital", notes_per_hospital, minimum=1, maximum=_MOST_NOTES)
    require_int("seed", seed, minimum=0, maximum=2**63 - 1)
    require_int("devel_notes", devel_notes, minimum=0, maximum=_MOST_NOTES)
    require_int("test_notes", test_notes, minimum=0, maximum=_MOST_NOTES)
    require_choice("language", language, LANGUAGES)
    _require_words(words)
    lexicons = {"en": PUBLIC_ENGLISH, "zh": PUBLIC_CHINESE} if public else {"en": ENGLISH, "zh": CHINESE}
    written = ("en", "zh") if language == "mixed" else (language,)
    recipe = _Recipe(
        seed=seed,
        public=public,
        lexicons=tuple(lexicons[code] for code in written),
        words=words,
        skew=require_float("skew", skew, minimum=0, maximum=10),
        # Making a Faker is slow, so there is one per language; every patient reseeds it.
        fakers={code: Faker(lexicons[code].locale) for code in written},
    )
    return SyntheticCorpus(
        train=tuple(_notes(recipe, "train", h, notes_per_hospital) for h in range(hospital_count)),
        devel=_shared(recipe, "devel", hospital_count, devel_notes),
        test=_shared(recipe, "test", hospital_count, test_notes),
    )


def write_jsonl(corpus: SyntheticCorpus, directory: Path | str) -> None:
    """Write `train.jsonl`, `devel.jsonl` and `test.jsonl`, each whole or not at all.

    A line is `{"id", "text", "spans": [{"start", "end", "label"}], "document_id", "patient_id", "hospital",
    "note_type", "language"}`; the training notes of all hospitals share one file.

    Raises:
        ValidationError: `directory` exists and is not a folder.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ValidationError(f"{folder} is a file; name a folder for the synthetic corpus.")
    folder.mkdir(parents=True, exist_ok=True)
    for split, notes in (("train", corpus.all_train), ("devel", corpus.devel), ("test", corpus.test)):
        _write_atomically(folder / f"{split}.jsonl", map(_json_line, notes))


def _require_words(words: Sequence[int]) -> None:
    """Check the least and largest length of a note."""
    if len(words) != 2:
        raise ValidationError(f"words is {words!r}; it must be a least and a largest number of words.")
    require_int("words[0]", words[0], minimum=10, maximum=100_000)
    require_int("words[1]", words[1], minimum=words[0], maximum=100_000)


def _shared(recipe: _Recipe, split: str, hospital_count: int, count: int) -> tuple[Note, ...]:
    """Write devel or test: the same number of notes (within one) in each hospital's style."""
    shares = [count // hospital_count + (h < count % hospital_count) for h in range(hospital_count)]
    return tuple(note for h, share in enumerate(shares) for note in _notes(recipe, split, h, share))


def _notes(recipe: _Recipe, split: str, hospital: int, count: int) -> tuple[Note, ...]:
    """Write `count` notes in one hospital's style, patient after patient."""
    lexicon = recipe.lexicon(hospital)
    writer, style = _writer(recipe, lexicon, split, hospital)
    rng = random.Random(f"notes/{recipe.seed}/{recipe.public}/{split}/{hospital}")
    prefix = f"{'public-' if recipe.public else ''}{split}-h{hospital}"
    notes: list[Note] = []
    while len(notes) < count:
        patient = writer.admit(f"{prefix}-p{len(notes)}", rng)
        for _ in range(min(rng.choice((1, 1, 2, 3, 4)), count - len(notes))):
            note_type = rng.choices(tuple(style.note_types), tuple(style.note_types.values()))[0]
            text, spans = writer.write(patient, note_type, rng.randint(*recipe.words), rng)
            note_id = f"{prefix}-n{len(notes)}"
            columns = {
                "hospital": f"hospital-{hospital}",
                "note_type": note_type,
                "language": lexicon.language,
            }
            notes.append(
                Note(
                    note_id=note_id,
                    text=text,
                    spans=spans,
                    document_id=note_id,
                    patient_id=patient.patient_id,
                    columns=columns,
                )
            )
    return tuple(notes)


def _writer(recipe: _Recipe, lexicon: Lexicon, split: str, hospital: int) -> tuple[NoteWriter, HouseStyle]:
    """Return the hospital's writer; devel, test and public use its typing with the whole grammar, evenly."""
    style = house_style(lexicon, hospital, seed=recipe.seed, skew=recipe.skew)
    # The public corpus is broad: its houses differ in typing, but all write with the whole grammar.
    dialect = split == "train" and not recipe.public
    if not dialect:
        style = neutral(style)
    grammar = MentionGrammar(
        lexicon,
        split=split,
        seed=recipe.seed,
        house=hospital if dialect else None,
        share=_DIALECT_SHARE,
    )
    writer = NoteWriter(
        lexicon,
        style,
        grammar,
        recipe.fakers[lexicon.language],
        seed=recipe.seed,
        template_share=_DIALECT_SHARE if dialect else 1.0,
    )
    return writer, style


def _json_line(note: Note) -> str:
    """Return the note as one line of JSON."""
    spans = [{"start": span.start, "end": span.end, "label": span.label} for span in note.spans]
    record: dict[str, object] = {"id": note.note_id, "text": note.text, "spans": spans}
    record |= {"document_id": note.document_id, "patient_id": note.patient_id}
    return json.dumps({**record, **note.columns}, ensure_ascii=False)


def _write_atomically(path: Path, lines: Iterable[str]) -> None:
    """Write beside `path` and move into place, so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
