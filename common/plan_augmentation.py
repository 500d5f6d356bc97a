"""The plan's `[augmentation]`, `[adversarial]` and `[features]`, and what of them privacy allows.

Under `[privacy]` everything that touches a unit's gradient is a function of that unit, of the model, of public
data and of secret randomness. What is outside the unit therefore has to be declared public in the plan, by
name, and word lists are pinned by their SHA-256, so that every site uses the list that was agreed on.
"""

from __future__ import annotations

import string
from dataclasses import dataclass

from common.errors import ValidationError
from common.plan_section import Section, checked, choice, flag, number, whole
from common.validation import require_choice, require_text

OPERATIONS = (
    "back_translation",
    "synonym",
    "insertion",
    "replacement",
    "label_wise",
    "mention",
    "swap",
    "deletion",
    "case",
    "typo",
)
"""The operations in the order in which a view goes through them."""

MENTION_SOURCES = ("unit", "lexicon", "site")
WORD_SOURCES = ("unit", "site")
METHODS = ("fgm", "pgd", "freelb")
OUTSIDE_SOURCES = ("synonyms", "mentions", "translation", "tagger")
"""What a plan can declare public."""


def _require_string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"{name} is {value!r}; it must be a text.")
    return value


def _require_hash(name: str, value: object) -> str:
    text = _require_string(name, value)
    if text and (len(text) != 64 or not set(text) <= set(string.hexdigits.lower())):
        raise ValidationError(
            f"{name} is {text!r}; it must be the 64 hexadecimal digits that sha256sum prints, or empty."
        )
    return text


def _require_public(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValidationError(f"{name} is {value!r}; it must be a list of {', '.join(OUTSIDE_SOURCES)}.")
    return tuple(sorted({require_choice(name, item, OUTSIDE_SOURCES) for item in value}))


def _require_pair(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) not in (0, 2):
        raise ValidationError(f"{name} is {value!r}; it must name two model folders: there and back.")
    return tuple(require_text(f"{name}[{i}]", item) for i, item in enumerate(value))


@dataclass(frozen=True, kw_only=True)
class Augmentation(Section):
    """Changed copies (*views*) of every unit to train on.

    The rates are shares in [0, 1]: of the words outside entities for `synonym`, `insertion`, `deletion`,
    `replacement` and `swap`; of all words for `label_wise`, `case` and `typo`; of the entities for `mention`;
    `back_translation` is the chance that a view of a note is translated there and back.

    Attributes:
        views: Views of each unit: anew in each epoch, or each time a private plan draws the unit.
        keep_original: Whether the unit itself is trained on beside its views.
        synonyms: A file of `word<TAB>synonym<TAB>synonym...` lines; `synonym` needs it, `insertion` likes it.
        synonyms_sha256: What the file's SHA-256 must be; a private plan needs it.
        mentions: A file of `type<TAB>mention` lines.
        mentions_sha256: As for the synonyms.
        mention_source: Where `mention` takes other mentions of a type from: the unit, the lexicon or the site.
        label_wise_source: Where `label_wise` takes other words of a tag from: the unit or the site.
        translation_models: Two folders of sequence-to-sequence models: there and back.
        public: Which outside sources are public knowledge: `synonyms`, `mentions`, `translation`.
    """

    title = "augmentation"
    views: int = whole(1, 1, 64)
    keep_original: bool = flag(True)
    synonym: float = number(0.0, 0.0, 1.0)
    insertion: float = number(0.0, 0.0, 1.0)
    deletion: float = number(0.0, 0.0, 1.0)
    replacement: float = number(0.0, 0.0, 1.0)
    swap: float = number(0.0, 0.0, 1.0)
    mention: float = number(0.0, 0.0, 1.0)
    label_wise: float = number(0.0, 0.0, 1.0)
    case: float = number(0.0, 0.0, 1.0)
    typo: float = number(0.0, 0.0, 1.0)
    back_translation: float = number(0.0, 0.0, 1.0)
    synonyms: str = checked("", _require_string)
    synonyms_sha256: str = checked("", _require_hash)
    mentions: str = checked("", _require_string)
    mentions_sha256: str = checked("", _require_hash)
    mention_source: str = choice("unit", MENTION_SOURCES)
    label_wise_source: str = choice("unit", WORD_SOURCES)
    translation_models: tuple[str, ...] = checked((), _require_pair)
    public: tuple[str, ...] = checked((), _require_public)

    def __post_init__(self) -> None:
        """Check the fields, and that each operation has what it needs."""
        super().__post_init__()
        if not self.rates:
            raise ValidationError(
                "[augmentation] has no operation with a rate above 0, so each view would be the unit itself; give "
                f"one of {', '.join(OPERATIONS)} a rate, or leave the section out."
            )
        self._require("synonym", "synonyms", needed=self.synonym > 0)
        self._require("mention", "mentions", needed=self.mention > 0 and self.mention_source == "lexicon")
        self._require("back_translation", "translation_models", needed=self.back_translation > 0)

    @property
    def rates(self) -> dict[str, float]:
        """The operations with a rate above 0, in the order in which they are done."""
        found = {name: float(getattr(self, name)) for name in OPERATIONS}
        return {name: rate for name, rate in found.items() if rate > 0}

    @property
    def uses_site(self) -> bool:
        """Whether an operation takes words from other units of the site."""
        return (self.mention > 0 and self.mention_source == "site") or (
            self.label_wise > 0 and self.label_wise_source == "site"
        )

    def check_private(self) -> None:
        """Refuse what would let other units, or files that nobody vouches for, into a unit's gradient.

        Raises:
            ValidationError: The sentence names the source and the reason.
        """
        if self.uses_site:
            name = "mention_source" if self.mention_source == "site" else "label_wise_source"
            raise ValidationError(
                f"augmentation.{name} is 'site'; under [privacy] a unit's views must not hold words of other "
                "units, because one clip covers one unit alone. Take them from the unit, or mentions from a "
                "public lexicon."
            )
        for name, used in (
            ("synonyms", bool(self.synonyms)),
            ("mentions", self.mention > 0 and self.mention_source == "lexicon"),
            ("translation", self.back_translation > 0),
        ):
            if used:
                _require_declared("augmentation", name, self.public)
        for name in ("synonyms", "mentions"):
            if getattr(self, name) and not getattr(self, f"{name}_sha256"):
                raise ValidationError(
                    f"augmentation.{name}_sha256 is empty; under [privacy] the file has to be the one that was "
                    f"declared public at every site, so give what sha256sum prints for augmentation.{name}."
                )

    def _require(self, operation: str, field: str, *, needed: bool) -> None:
        if needed and not getattr(self, field):
            raise ValidationError(
                f"augmentation.{operation} is above 0 and augmentation.{field} is empty; give it, or set the rate "
                "to 0."
            )


@dataclass(frozen=True, kw_only=True)
class Adversarial(Section):
    """Training against perturbed word embeddings, each window on its own.

    Attributes:
        method: `fgm` (Miyato et al. 2017), `pgd` (Madry et al. 2018) or `freelb` (Zhu et al. 2020).
        radius: Largest L2 norm of a window's perturbation, over all of its pieces together.
        ascent_steps: Steps of `pgd` and `freelb`; `fgm` takes one.
        ascent_rate: L2 length of one such step.
    """

    title = "adversarial"
    method: str = choice("fgm", METHODS)
    radius: float = number(1.0, 0.0, 1e4, above=True)
    ascent_steps: int = whole(3, 1, 32)
    ascent_rate: float = number(0.5, 0.0, 1e4, above=True)

    @property
    def copies(self) -> int:
        """How often a window goes into the loss: clean and perturbed, or perturbed once a step."""
        return self.ascent_steps if self.method == "freelb" else 2

    def check_private(self, *, physical_tokens: int, max_tokens: int) -> None:
        """Refuse a batch size under which memory, and so a failure, would depend on the records."""
        if physical_tokens < self.copies * max_tokens:
            raise ValidationError(
                f"training.physical_tokens is {physical_tokens}, and {self.method} puts {self.copies} copies of a "
                f"window of up to {max_tokens} tokens into one batch; under [privacy] whether they fit must not "
                f"depend on the records, so set it to at least {self.copies * max_tokens}."
            )


@dataclass(frozen=True, kw_only=True)
class Features(Section):
    """Word features that are embedded and given to the head beside the encoder's output.

    Attributes:
        shape: Whether to use the word's shape: capitals, digits, punctuation.
        tagger: Part of speech: "" for none, `blank:en` (any spaCy language) for the coarse classes that spaCy's
            rules know without a model, or the folder or package of a spaCy pipeline that tags.
        dimension: Width of each embedding.
        public: `tagger`, where a pipeline given by name or folder was trained on none of the sites' records.
    """

    title = "features"
    shape: bool = flag(True)
    tagger: str = checked("", _require_string)
    dimension: int = whole(16, 1, 1024)
    public: tuple[str, ...] = checked((), _require_public)

    def __post_init__(self) -> None:
        """Check the fields, and that there is a feature."""
        super().__post_init__()
        if not self.shape and not self.tagger:
            raise ValidationError(
                "[features] has neither features.shape nor features.tagger; give one, or leave the section out."
            )

    def check_private(self) -> None:
        """Refuse a trained tagger that nobody vouches for."""
        if self.tagger and not self.tagger.startswith("blank:"):
            _require_declared("features", "tagger", self.public)


def check_private_sections(
    augmentation: Augmentation | None,
    adversarial: Adversarial | None,
    features: Features | None,
    *,
    physical_tokens: int,
    max_tokens: int,
) -> None:
    """Refuse, for a plan with `[privacy]`, what would break the guarantee.

    Raises:
        ValidationError: The sentence names the field, the reason and what to do.
    """
    if augmentation is not None:
        augmentation.check_private()
    if adversarial is not None:
        adversarial.check_private(physical_tokens=physical_tokens, max_tokens=max_tokens)
    if features is not None:
        features.check_private()


def _require_declared(section: str, name: str, public: tuple[str, ...]) -> None:
    if name not in public:
        raise ValidationError(
            f"{section} uses {name}, which is outside the privacy unit; under [privacy] that must be public "
            f"knowledge and made from no site's records. If it is, add {name!r} to {section}.public."
        )
