"""The training plan: what a consortium agrees on, as a frozen tree read from TOML.

Every field is checked at construction. `Plan.hash` is the SHA-256 of the canonical form; a site and a
server whose hashes differ refuse each other. Privacy (`[privacy]`, `[secure_aggregation]`) is kept apart
from speed (`[training]`): no field of one section changes the meaning of another.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from common.errors import PlanError, ValidationError
from common.plan_augmentation import Adversarial, Augmentation, Features, check_private_sections
from common.plan_section import Section as Section
from common.plan_section import checked as _checked
from common.plan_section import choice as _choice
from common.plan_section import flag as _flag
from common.plan_section import number as _float
from common.plan_section import text as _text
from common.plan_section import whole as _int
from common.preparation import StageChoice, require_stages, require_within_units
from common.validation import (
    nearest,
    require_choice,
    require_int,
    require_known_keys,
    require_text,
)

PLAN_VERSION = "fedward-plan-v1"

SERVER_OPTIMIZERS = ("fedavg", "fedavgm", "fedadam", "fedyogi")
SERVER_DECAYS = ("none", "linear")
PRECISIONS = ("auto", "float32", "bf16")
UNITS = ("record", "document", "patient")
CLIPPING_ENGINES = ("bookkeeping", "ghost", "hooks")
CLIPPING_STYLES = ("flat", "auto", "per_layer")
LOCAL_OPTIMIZERS = ("adam", "sgd")
PRIVATELY_TRAINED = ("all", "layers", "biases")
PARTITIONS = ("even", "power_law", "dirichlet", "column")
ENGINES = ("inprocess", "ray")


def _require_string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValidationError(f"{name} is {value!r}; it must be a text.")
    return value


_SINGLE_UPDATE_RULES = ("krum", "multi_krum", "median", "trimmed_mean", "bulyan")


def _require_optimizer(name: str, value: object) -> str:
    if isinstance(value, str) and value.lower() in _SINGLE_UPDATE_RULES:
        raise ValidationError(
            f"{name} is {value!r}; rules that compare single updates cannot be used, because secure aggregation "
            f"opens their sum alone. Use one of {', '.join(SERVER_OPTIMIZERS)}."
        )
    return require_choice(name, value, SERVER_OPTIMIZERS)


def _require_labels(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValidationError(f"{name} is {value!r}; it must be a list of at least one entity type.")
    labels = tuple(require_text(f"{name}[{i}]", label) for i, label in enumerate(value))
    if len(set(labels)) != len(labels):
        raise ValidationError(f"{name} names an entity type twice: {', '.join(labels)}.")
    return labels


def _require_label_map(name: str, value: object) -> tuple[tuple[str, str], ...]:
    items = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not all(isinstance(p, tuple) and len(p) == 2 for p in items):
        raise ValidationError(f"{name} is {value!r}; it must be a table of source label = entity type.")
    pairs = []
    for source, target in items:
        pairs.append((require_text(f"{name} key", source), _require_string(f"{name}.{source}", target)))
    return tuple(sorted(pairs))


@dataclass(frozen=True, kw_only=True)
class Task(Section):
    """What is recognised. The schema is declared here and never derived from a site's data."""

    title = "task"
    name: str = _text("clinical-ner")
    entity_types: tuple[str, ...] = _checked(("Disease",), _require_labels)
    label_map: tuple[tuple[str, str], ...] = _checked((), _require_label_map)


@dataclass(frozen=True, kw_only=True)
class Model(Section):
    """The encoder and what of it is trained.

    `encoder` is `minilm` (inside the installation), a Hugging Face name or a folder. `trained_layers`
    counts from the top; -1 trains all, 0 the head alone. `lora_rank` 0 trains no adapters.
    """

    title = "model"
    encoder: str = _text("minilm")
    max_tokens: int = _int(256, 16, 4096)
    stride: int = _int(64, 0, 2048)
    dropout: float = _float(0.1, 0.0, 0.9)
    freeze_embeddings: bool = _flag(False)
    trained_layers: int = _int(-1, -1, 1000)
    lora_rank: int = _int(0, 0, 1024)
    lora_alpha: float = _float(16.0, 0.0, 4096.0, above=True)
    lora_dropout: float = _float(0.0, 0.0, 0.9)

    def __post_init__(self) -> None:
        """Check the fields, and that one of them alone says which layers are trained."""
        super().__post_init__()
        if self.lora_rank and self.trained_layers >= 0:
            raise ValidationError(
                f"model.lora_rank is {self.lora_rank} and model.trained_layers is {self.trained_layers}; adapters "
                "stand in for training the layers, so leave one of the two out."
            )


@dataclass(frozen=True, kw_only=True)
class Federation(Section):
    """Rounds, the server optimizer, the cohort and the deadlines (seconds).

    `server_decay` is `none`, or `linear`: the server's learning rate falls from round to round, to a share of one
    over `rounds` in the last.
    """

    title = "federation"
    rounds: int = _int(8, 1, 100_000)
    local_epochs: int = _int(1, 0, 1000)
    local_steps: int = _int(0, 0, 1_000_000)
    optimizer: str = _checked("fedavg", _require_optimizer)
    server_learning_rate: float = _float(1.0, 0.0, 100.0, above=True)
    server_momentum: float = _float(0.9, 0.0, 0.9999)
    beta1: float = _float(0.9, 0.0, 0.9999)
    beta2: float = _float(0.99, 0.0, 0.99999)
    tau: float = _float(1e-3, 0.0, 1.0, above=True)
    server_decay: str = _choice("none", SERVER_DECAYS)
    minimum_cohort: int = _int(3, 1, 100_000)
    train_deadline: float = _float(3600.0, 0.0, 604_800.0, above=True)
    exchange_deadline: float = _float(300.0, 0.0, 86_400.0, above=True)
    attempts: int = _int(3, 1, 20)
    roster_sha256: str = _checked("", _require_string)


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """How a site fits its own records between two exchanges. Nothing here changes a privacy claim."""

    title = "training"
    learning_rate: float = _float(2e-4, 0.0, 1.0, above=True)
    head_learning_rate: float = _float(0.0, 0.0, 1.0)
    batch_size: int = _int(32, 1, 100_000)
    physical_tokens: int = _int(4096, 64, 10_000_000)
    warmup_fraction: float = _float(0.1, 0.0, 1.0)
    weight_decay: float = _float(0.01, 0.0, 1.0)
    max_grad_norm: float = _float(1.0, 0.0, 1e6, above=True)
    fedprox_mu: float = _float(0.0, 0.0, 100.0)
    precision: str = _choice("auto", PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class Privacy(Section):
    """Local differential privacy. Absent from a plan, the run is not private.

    `steps` counts the noised steps of one site over all rounds. Exactly one of `noise_multiplier` and
    `target_epsilon` is positive; the other is 0. `optimizer` is what a site steps with: each round begins a new
    `adam`; `sgd` with one step a round leaves adaptive steps to the server's optimizer, which then sees the
    sites' gradients averaged, and their noise with them. `trained` is what the noised steps change: `all` that the
    model section lets train, `layers` leaves the embeddings as the warm-up left them, and `biases` changes only
    biases, norms and the head (Bu et al. 2022, DP-BiTFiT): the fewer numbers, the less noise in all.
    """

    title = "privacy"
    unit: str = _choice("record", UNITS)
    q: float = _float(0.2, 0.0, 1.0, above=True)
    steps: int = _int(60, 1, 1_000_000)
    clip: float = _float(1.0, 0.0, 1e6, above=True)
    clipping: str = _choice("auto", CLIPPING_STYLES)
    engine: str = _choice("bookkeeping", CLIPPING_ENGINES)
    noise_multiplier: float = _float(0.0, 0.0, 1e4)
    target_epsilon: float = _float(0.0, 0.0, 1e3)
    delta: float = _float(1e-5, 0.0, 0.1, above=True)
    reserve_rounds: int = _int(0, 0, 1000)
    max_windows_per_unit: int = _int(16, 1, 10_000)
    averaging: float = _float(0.0, 0.0, 0.9999)
    optimizer: str = _choice("adam", LOCAL_OPTIMIZERS)
    trained: str = _choice("all", PRIVATELY_TRAINED)

    def __post_init__(self) -> None:
        """Check the fields and that the noise is given in exactly one way."""
        super().__post_init__()
        if (self.noise_multiplier > 0) == (self.target_epsilon > 0):
            raise ValidationError(
                f"privacy.noise_multiplier is {self.noise_multiplier} and privacy.target_epsilon is "
                f"{self.target_epsilon}; give exactly one of them a positive value."
            )
        if self.engine == "ghost" and self.clipping == "per_layer":
            raise ValidationError(
                "privacy.engine is 'ghost' and privacy.clipping is 'per_layer'; one weighted loss cannot clip "
                "each layer on its own, so choose the engine bookkeeping or hooks, or flat or auto clipping."
            )


@dataclass(frozen=True, kw_only=True)
class Warmup(Section):
    """Public training at the server before round 1. `source` is `synthetic` or a folder of public records."""

    title = "warmup"
    source: str = _text("synthetic")
    notes: int = _int(400, 1, 1_000_000)
    epochs: int = _int(1, 1, 100)
    learning_rate: float = _float(2e-4, 0.0, 1.0, above=True)
    head_only: bool = _flag(False)


@dataclass(frozen=True, kw_only=True)
class SecureAggregation(Section):
    """Whether and how updates are masked. `threshold` 0 asks for the smallest safe one.

    `clip` bounds each weighted coordinate of a site's update; `bits` is its width in the ring, sign included.
    """

    title = "secure_aggregation"
    enabled: bool = _flag(True)
    threshold: int = _int(0, 0, 100_000)
    collusion_tolerance: int = _int(1, 0, 100_000)
    clip: float = _float(0.25, 0.0, 1e4, above=True)
    bits: int = _int(20, 8, 32)
    dropout_tolerance: float = _float(0.2, 0.0, 0.9)


@dataclass(frozen=True, kw_only=True)
class Preparation(Section):
    """What every site does to its notes before tokenisation, in order; a site's own file may add stages."""

    title = "preparation"
    stages: tuple[StageChoice, ...] = _checked((), require_stages)


@dataclass(frozen=True, kw_only=True)
class Tracking(Section):
    """Where metrics go besides the run folder; both stay offline unless their own settings say otherwise."""

    title = "tracking"
    mlflow: bool = _flag(False)
    wandb: bool = _flag(False)


@dataclass(frozen=True, kw_only=True)
class Simulation(Section):
    """How `fedward-sim` splits one data set over sites; a real federation ignores it."""

    title = "simulation"
    sites: int = _int(4, 1, 100_000)
    partition: str = _choice("even", PARTITIONS)
    alpha: float = _float(0.5, 0.0, 1e6, above=True)
    exponent: float = _float(1.0, 0.0, 10.0)
    column: str = _text("hospital")
    minimum_examples: int = _int(1, 1, 1_000_000)
    threads: int = _int(0, 0, 1024)


_SECTIONS: dict[str, type[Section]] = {
    section.title: section
    for section in (
        Task,
        Model,
        Federation,
        Training,
        Augmentation,
        Adversarial,
        Features,
        Privacy,
        Warmup,
        SecureAggregation,
        Preparation,
        Tracking,
        Simulation,
    )
}
_OPTIONAL = ("augmentation", "adversarial", "features", "privacy", "warmup")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole agreement; see the sections for the fields."""

    seed: int = 13
    task: Task = field(default_factory=Task)
    model: Model = field(default_factory=Model)
    federation: Federation = field(default_factory=Federation)
    training: Training = field(default_factory=Training)
    augmentation: Augmentation | None = None
    adversarial: Adversarial | None = None
    features: Features | None = None
    privacy: Privacy | None = None
    warmup: Warmup | None = None
    secure_aggregation: SecureAggregation = field(default_factory=SecureAggregation)
    preparation: Preparation = field(default_factory=Preparation)
    tracking: Tracking = field(default_factory=Tracking)
    simulation: Simulation = field(default_factory=Simulation)

    def __post_init__(self) -> None:
        """Check what spans several sections."""
        require_int("seed", self.seed, minimum=0, maximum=2**32 - 1)
        self._check_windows()
        self._check_local_work()
        self._check_privacy()

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Plan:
        """Make a plan from parsed TOML.

        Raises:
            ValidationError: A key is unknown or a value is outside its range.
        """
        require_known_keys("the plan", table, ["seed", *_SECTIONS])
        parts = {k: _SECTIONS[k].from_table(v) for k, v in table.items() if k != "seed"}
        if "privacy" in table and table.get("federation", {}).get("local_epochs"):
            raise _epochs_under_privacy(table["federation"]["local_epochs"])
        return cls(seed=table.get("seed", 13), **parts)  # type: ignore[arg-type]

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        canonical = json.dumps([PLAN_VERSION, self.to_table()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_table(self) -> dict[str, Any]:
        """Return the plan as nested plain values, every default written out."""
        table: dict[str, Any] = {"seed": self.seed}
        for name in _SECTIONS:
            section = getattr(self, name)
            if section is not None:
                table[name] = {
                    item.name: _plain(getattr(section, item.name)) for item in dataclasses.fields(section)
                }
        table["task"]["label_map"] = dict(self.task.label_map)
        return table

    def to_toml(self) -> str:
        """Return the plan as TOML text that `read_plan` reads back to an equal plan."""
        return tomli_w.dumps(self.to_table())

    def _check_windows(self) -> None:
        if self.model.stride * 2 >= self.model.max_tokens:
            raise ValidationError(
                f"model.stride is {self.model.stride}; it must be less than half of model.max_tokens, "
                f"which is {self.model.max_tokens}."
            )

    def _check_local_work(self) -> None:
        federation = self.federation
        if self.privacy is None and (federation.local_epochs > 0) == (federation.local_steps > 0):
            raise ValidationError(
                f"federation.local_epochs is {federation.local_epochs} and federation.local_steps is "
                f"{federation.local_steps}; give exactly one of them a positive value."
            )

    def _check_privacy(self) -> None:
        privacy = self.privacy
        if privacy is None:
            return
        federation = self.federation
        if privacy.steps % federation.rounds:
            raise ValidationError(
                f"privacy.steps is {privacy.steps}; it must be a multiple of federation.rounds, which is "
                f"{federation.rounds}, so that every round has the same number of steps."
            )
        if federation.local_steps:
            raise ValidationError(
                f"federation.local_steps is {federation.local_steps}; under [privacy] the steps of a "
                "round are privacy.steps / federation.rounds, so leave it out."
            )
        if federation.local_epochs > 1:
            raise _epochs_under_privacy(federation.local_epochs)
        require_within_units("preparation.stages", self.preparation.stages)
        # One epoch is the default of a plan that names none; a private plan has no epochs at all.
        object.__setattr__(self, "federation", dataclasses.replace(federation, local_epochs=0))
        if self.training.physical_tokens < self.model.max_tokens:
            raise ValidationError(
                f"training.physical_tokens is {self.training.physical_tokens} and model.max_tokens is "
                f"{self.model.max_tokens}; under [privacy] whether a window fits must not depend on the "
                "records, so raise the one or lower the other."
            )
        check_private_sections(
            self.augmentation,
            self.adversarial,
            self.features,
            physical_tokens=self.training.physical_tokens,
            max_tokens=self.model.max_tokens,
        )


def _epochs_under_privacy(epochs: object) -> ValidationError:
    """Return the error for a private plan with epochs."""
    return ValidationError(
        f"federation.local_epochs is {epochs!r}; under [privacy] units are drawn at the rate privacy.q for "
        "privacy.steps steps, and an epoch would visit each unit for certain, which no accountant here "
        "covers, so leave it out."
    )


def read_plan(path: Path, overrides: Iterable[str] = ()) -> Plan:
    """Read a plan from a TOML file and apply `key=value` overrides.

    Args:
        path: The plan file.
        overrides: `section.field=value`, or `field=value` where one section alone has that field.

    Raises:
        PlanError: The file or an override is not usable; the sentence names it and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist; give the path of a plan file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read as UTF-8 text ({type(error).__name__}).") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path} is not valid TOML: {error}.") from None
    try:
        for override in overrides:
            _override(table, override)
        return Plan.from_table(table)
    except ValidationError as error:
        raise PlanError(f"{path}: {error}") from None


def _override(table: dict[str, Any], override: str) -> None:
    """Apply one `key=value` to a parsed plan."""
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise ValidationError(f"--set {override!r} is not of the form key=value.")
    section, name = _find_field(key.strip())
    value = _parse_value(raw.strip())
    if section is None:
        table[name] = value
    elif name == "":
        if value is not False:
            raise ValidationError(
                f"--set {section}={raw.strip()}: [{section}] is a table; set one of its fields, such as "
                f"{section}.{dataclasses.fields(_SECTIONS[section])[0].name}, or leave it out by {section}=false."
            )
        table.pop(section, None)
    else:
        fields = table.setdefault(section, {})
        if not isinstance(fields, dict):
            raise ValidationError(f"[{section}] must be a table, not {fields!r}.")
        fields[name] = value


def _find_field(key: str) -> tuple[str | None, str]:
    """Return the section and field that a key means; `privacy=false` drops the whole section."""
    if key == "seed":
        return None, "seed"
    if key in _OPTIONAL:
        return key, ""
    fields = {
        f"{s}.{item.name}": (s, item.name) for s, c in _SECTIONS.items() for item in dataclasses.fields(c)
    }
    if key in fields:
        return fields[key]
    found = [full for full in fields if full.endswith(f".{key}")]
    if len(found) == 1:
        return fields[found[0]]
    if found:
        raise ValidationError(
            f"--set {key} could mean {', '.join(sorted(found))}; write one of them in full."
        )
    names = {full.partition(".")[2] for full in fields} | set(fields)
    hint = nearest(key, names)
    raise ValidationError(f"--set {key}: no such field." + (f" Did you mean {hint!r}?" if hint else ""))


def _parse_value(raw: str) -> Any:
    """Parse a value as TOML; what is not TOML is taken as a plain text."""
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _plain(value: Any) -> Any:
    if isinstance(value, StageChoice):
        return value.to_table()
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
