"""Writes one synthetic note: templates become segments, segments become text with exact spans.

The template language: `{Disease}` draws a mention of that type, `<Disease:cold>` is a fixed mention,
`[a|b]` is a choice, ` ~ ` parts the cells of a row, and `{date}`, `{name}`, `{doctor}`, `{mrn}`, `{phone}`,
`{birth}`, `{age}`, `{year}`, `{time}`, `{bp}`, `{hr}`, `{sat}`, `{n}` and `{d}` are filled with values that
are no entities.

Annotation rule: every mention of a type is an entity, also where it is negated, suspected, or of a relative.
Names of wards, clinics and staff, laboratory values and measurements are not, whatever words they use.
"""

from __future__ import annotations

import datetime
import random
import re
from dataclasses import dataclass, field

from faker import Faker

from common.records import EntitySpan
from simulation.synthetic_lexicon import LABELS, Lexicon, MentionGrammar, Section, house_subset
from simulation.synthetic_style import HouseStyle

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_MARK = re.compile(r"\{(\w+)\}|<(\w+):([^>]*)>")
_LABEL_SLOT = re.compile("[{<](" + "|".join(LABELS) + r")\b")
_NUMBERS = {"d": (1, 10), "n": (12, 180), "sat": (86, 100), "hr": (48, 132)}
_FIRST_DAY = datetime.date(2021, 1, 4)
# A mention of the patient's own history comes back this often: notes of one patient hang together.
_RECALL = 0.3


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of characters that is one mention (`label`), or none."""

    text: str = field(repr=False)
    label: str | None = None


Line = tuple[Segment, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A section as written: its header and its lines."""

    header: str
    lines: tuple[Line, ...] = field(repr=False)
    rows: bool


@dataclass(kw_only=True)
class Patient:
    """One synthetic patient, whose history grows with every note.

    Attributes:
        patient_id: Unique within the corpus.
        facts: PHI by slot name.
        history: Mentions by entity type that later notes may repeat.
        day: The date of the latest note.
        blocks: Sections of the latest note, which the next may copy forward.
    """

    patient_id: str
    facts: dict[str, str] = field(repr=False)
    history: dict[str, list[str]] = field(default_factory=dict, repr=False)
    day: datetime.date = _FIRST_DAY
    blocks: tuple[Block, ...] = field(default=(), repr=False)


class NoteWriter:
    """Writes the notes of one hospital.

    Args:
        lexicon: Language and audience.
        style: The house style.
        grammar: Where mentions come from.
        faker: The source of PHI; it is reseeded for every patient.
        seed: The corpus seed, which chooses the templates of the house.
        template_share: The part of each section's templates that the house uses, in (0, 1].
        copy_forward: How often a note repeats a section of the patient's last note, in [0, 1].
    """

    def __init__(
        self,
        lexicon: Lexicon,
        style: HouseStyle,
        grammar: MentionGrammar,
        faker: Faker,
        *,
        seed: int,
        template_share: float,
        copy_forward: float = 0.35,
    ) -> None:
        """Put the hospital together."""
        self._lexicon = lexicon
        self._style = style
        self._grammar = grammar
        self._faker = faker
        self._key = (seed, style.hospital)
        self._share = template_share
        self._copy_forward = copy_forward
        self._weighted: dict[Section, tuple[tuple[str, ...], dict[str, float]]] = {}

    def admit(self, patient_id: str, rng: random.Random) -> Patient:
        """Return a new patient with PHI of the locale."""
        self._faker.seed_instance(rng.getrandbits(64))
        first = _FIRST_DAY + datetime.timedelta(days=rng.randrange(1200))
        born = first - datetime.timedelta(days=rng.randrange(18 * 365, 95 * 365))
        facts = {
            "name": self._faker.name(),
            "mrn": f"{rng.randrange(10**6, 10**7)}",
            "phone": self._faker.phone_number(),
            "birth": born.strftime(self._style.date_format),
            "age": str((first - born).days // 365),
        }
        return Patient(patient_id=patient_id, facts=facts, day=first)

    def write(
        self, patient: Patient, note_type: str, words: int, rng: random.Random
    ) -> tuple[str, tuple[EntitySpan, ...]]:
        """Return the text and spans of the patient's next note.

        Args:
            patient: Whose note it is; its history, date and last sections move on.
            note_type: One of the lexicon's note types.
            words: The length to aim at, in words (two Chinese characters count as one).
            rng: The source of every choice.
        """
        patient.day += datetime.timedelta(days=rng.randrange(0, 20))
        identity = self._expand(self._style.identity, patient, rng)
        blocks = self._blocks(patient, note_type, words - _length(identity), rng)
        if patient.blocks and rng.random() < self._copy_forward:
            blocks = (*blocks, rng.choice(patient.blocks))
        patient.blocks = blocks
        return _render(self._layout(note_type, identity, blocks))

    def _blocks(
        self, patient: Patient, note_type: str, words: float, rng: random.Random
    ) -> tuple[Block, ...]:
        """Fill the note type's sections in turn until the note is long enough."""
        sections = self._lexicon.sections[note_type]
        lines: list[list[Line]] = [[] for _ in sections]
        order = rng.sample(range(len(sections)), len(sections))
        written, turn = 0.0, 0
        used: set[str] = set()
        while written < words:
            place = order[turn % len(order)]
            template = self._template(sections[place], used, rng)
            used.add(template)
            line = self._sentence(self._expand(template, patient, rng), rows=sections[place].rows)
            lines[place].append(line)
            written += _length(line)
            turn += 1
        return tuple(
            Block(header=self._header(section), lines=tuple(of_section), rows=section.rows)
            for section, of_section in zip(sections, lines, strict=True)
            if of_section
        )

    def _template(self, section: Section, used: set[str], rng: random.Random) -> str:
        """Draw one of the house's templates, leaning to the entity types that the house writes about."""
        if section not in self._weighted:
            self._weighted[section] = self._of_house(section)
        of_house, weights = self._weighted[section]
        # A note repeats a sentence's form only once it has used them all; rows of a list are alike anyway.
        fresh = () if section.rows else tuple(t for t in of_house if t not in used)
        templates = fresh or of_house
        return rng.choices(templates, [weights[template] for template in templates])[0]

    def _of_house(self, section: Section) -> tuple[tuple[str, ...], dict[str, float]]:
        """Return the house's share of the section's templates, and how eagerly it writes each."""
        templates = house_subset(section.templates, self._share, *self._key, section.headers[0])
        return templates, {template: self._eagerness(template) for template in templates}

    def _eagerness(self, template: str) -> float:
        """Return the mean tilt of the entity types in the template; without any it is 0.6."""
        tilts = [self._style.tilt[label] for label in _LABEL_SLOT.findall(template)]
        return sum(tilts) / len(tilts) if tilts else 0.6

    def _header(self, section: Section) -> str:
        """Return the section's header as this house writes it."""
        words = section.headers[self._style.hospital % len(section.headers)]
        case = self._style.header_case
        cased = words.upper() if case == "upper" else words.lower() if case == "lower" else words
        return self._style.header_format.format(cased)

    def _expand(self, template: str, patient: Patient, rng: random.Random) -> Line:
        """Turn a template into segments: choices, mentions, fillers, shorthand and typing errors."""
        chosen = _CHOICE.sub(lambda choice: rng.choice(choice[1].split("|")), template)
        segments: list[Segment] = []
        position = 0
        for mark in _MARK.finditer(chosen):
            segments.append(self._plain(chosen[position : mark.start()], rng))
            segments.append(self._marked(mark, patient, rng))
            position = mark.end()
        segments.append(self._plain(chosen[position:], rng))
        return tuple(segment for segment in segments if segment.text)

    def _sentence(self, line: Line, *, rows: bool) -> Line:
        """Begin a sentence with a capital, unless it is a row or the house writes in lower case."""
        if rows or self._style.header_case == "lower" or not line[0].text[0].isascii():
            return line
        first = line[0]
        return (Segment(first.text[0].upper() + first.text[1:], first.label), *line[1:])

    def _marked(self, mark: re.Match[str], patient: Patient, rng: random.Random) -> Segment:
        """Return the segment for one slot or fixed mention."""
        slot, label, literal = mark[1], mark[2], mark[3]
        if label is not None:
            return Segment(literal, label)
        if slot not in LABELS:
            return Segment(self._filler(slot, patient, rng))
        return Segment(self._style.typed(self._mention(slot, patient, rng), rng), slot)

    def _mention(self, label: str, patient: Patient, rng: random.Random) -> str:
        """Return a new mention, or one of the patient's history."""
        known = patient.history.setdefault(label, [])
        if known and rng.random() < _RECALL:
            return rng.choice(known)
        mention = self._grammar.draw(label, rng)
        known.append(mention)
        if label == "Dosage" and self._style.glued_units and mention[0].isdigit():
            return mention.replace(" ", "")
        return mention

    def _filler(self, slot: str, patient: Patient, rng: random.Random) -> str:
        """Return the value of a slot that is no entity."""
        if slot in patient.facts:
            return patient.facts[slot]
        if slot == "date":
            return patient.day.strftime(self._style.date_format)
        if slot == "doctor":
            return self._doctor(rng)
        if slot == "year":
            return str(patient.day.year - rng.randrange(1, 20))
        if slot == "time":
            return f"{rng.randrange(24):02d}:{rng.randrange(0, 60, 5):02d}"
        if slot == "bp":
            return f"{rng.randrange(90, 180)}/{rng.randrange(50, 105)}"
        low, high = _NUMBERS[slot]
        return str(rng.randrange(low, high))

    def _doctor(self, rng: random.Random) -> str:
        """Return a member of staff; some have names that are also words of the trade."""
        namesake = rng.random() < 0.25
        surname = rng.choice(self._lexicon.namesakes) if namesake else self._faker.last_name()
        return f"{surname}医生" if self._lexicon.language == "zh" else f"Dr. {surname}"

    def _plain(self, text: str, rng: random.Random) -> Segment:
        """Return literal text with the house's cells, shorthand and typing errors."""
        return Segment(self._style.typed(text.replace(" ~ ", self._style.cell), rng))

    def _layout(self, note_type: str, identity: Line, blocks: tuple[Block, ...]) -> list[Segment]:
        """Put title, patient line and sections together."""
        style = self._style
        title = self._lexicon.titles[note_type]
        segments = [Segment((title.upper() if style.header_case == "upper" else title) + "\n"), *identity]
        for block in blocks:
            segments.append(Segment("\n" + block.header))
            if block.rows and not block.header.endswith("\n"):
                segments.append(Segment("\n"))
            between = "\n" if block.rows else style.sentence_break
            for index, line in enumerate(block.lines):
                lead = (between if index else "") + (style.bullet if block.rows else "")
                segments += [Segment(lead), *line]
        return segments


def _length(line: Line) -> float:
    """Return the length of a line in words; two Chinese characters count as one."""
    text = "".join(segment.text for segment in line)
    ideographs = sum("\u4e00" <= character <= "\u9fff" for character in text)
    return len(text.split()) + ideographs / 2


def _render(segments: list[Segment]) -> tuple[str, tuple[EntitySpan, ...]]:
    """Join the segments; spans count the characters that were really written."""
    pieces: list[str] = []
    spans: list[EntitySpan] = []
    position = 0
    for segment in segments:
        end = position + len(segment.text)
        if segment.label is not None:
            spans.append(EntitySpan(start=position, end=end, label=segment.label))
        pieces.append(segment.text)
        position = end
    return "".join(pieces), tuple(spans)
