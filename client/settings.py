"""One site's own file, `site.toml`, and the site that it opens.

```toml
[site]
name = "st-mary"            # as in the roster
data = "records"            # a folder with `train`, in any format that ingestion reads
roster = "roster.toml"
spool = "spool"             # finished updates wait here, mode 0600
plan = "plan.toml"          # the plan that this site has agreed to
device = "auto"

[keys]
identity = "identity.pem"   # mode 0600

[policy]                    # see client.policy

[deidentification]          # see docs/deidentification.md
mode = "surrogate"
languages = ["en"]
secret = "surrogates.secret"  # mode 0600
[preparation]               # see client.preparation_settings
```

Paths are taken from the file's own folder. The server changes none of this.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.approvals import Approvals
from client.keys import load_identity_key
from client.plan_facts import facts_of
from client.policy import Policy
from client.preparation_settings import PreparationTable
from common.errors import PlanError, ValidationError
from common.messages import HELLO, Envelope
from common.plan import Plan, Section, read_plan
from common.roster import Roster, read_roster
from common.validation import require_choice, require_float, require_known_keys, require_text

if TYPE_CHECKING:
    from client.site import Site


def _required(check: Callable[[str, object], Any]) -> Any:
    """Declare a field that must be in the file."""
    return dataclasses.field(metadata={"check": check})


def _optional(default: Any, check: Callable[[str, object], Any]) -> Any:
    """Declare a field that may be left out."""
    return dataclasses.field(default=default, metadata={"check": check})


def _path(name: str, value: object) -> Path:
    """Return a path that is written as a text."""
    return value if isinstance(value, Path) else Path(require_text(name, value)).expanduser()


@dataclass(frozen=True, kw_only=True)
class _RequiredSection(Section):
    """A table some of whose fields have no safe default."""

    @classmethod
    def from_table(cls, table: object) -> Self:
        """Make the section; a missing field is named."""
        names = [one.name for one in dataclasses.fields(cls) if one.default is dataclasses.MISSING]
        for name in names:
            if isinstance(table, dict) and name not in table:
                raise ValidationError(f"{cls.title}.{name} is missing.")
        return super().from_table(table)


_Table = TypeVar("_Table", bound=_RequiredSection)


@dataclass(frozen=True, kw_only=True)
class SiteTable(_RequiredSection):
    """Who the site is and where its things are.

    Without `plan`, the path that the run names is opened, which suits a trial on one machine.
    """

    title = "site"
    name: str = _required(require_text)
    data: Path = _required(_path)  # noqa: RUF009
    roster: Path = _required(_path)  # noqa: RUF009
    spool: Path = _required(_path)  # noqa: RUF009
    plan: Path | None = _optional(None, lambda name, value: value if value is None else _path(name, value))  # noqa: RUF009
    device: str = _optional("auto", require_text)


@dataclass(frozen=True, kw_only=True)
class KeysTable(_RequiredSection):
    """The site's keys."""

    title = "keys"
    identity: Path = _required(_path)  # noqa: RUF009


def _texts(name: str, value: object) -> tuple[str, ...]:
    """Return a list of texts as a tuple."""
    if not isinstance(value, list | tuple):
        raise ValidationError(f"{name} is {value!r}; it must be a list of texts.")
    return tuple(require_text(f"{name}[{number}]", one) for number, one in enumerate(value))


def _some_texts(name: str, value: object) -> tuple[str, ...]:
    """Return a list of at least one text as a tuple."""
    texts = _texts(name, value)
    if not texts:
        raise ValidationError(f"{name} is empty; give at least one.")
    return texts


def _text_table(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Return a table of texts as pairs; a value may be empty."""
    pairs = tuple(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, tuple) or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValidationError(f"{name} is {value!r}; it must be a table of texts.")
    return pairs


def _optional_path(name: str, value: object) -> Path | None:
    """Return a path, or None where there is none."""
    return None if value is None else _path(name, value)


@dataclass(frozen=True, kw_only=True)
class DeidentificationTable(_RequiredSection):
    """How a site de-identifies its notes; see `docs/deidentification.md`.

    `staff`, `wards` and `allowed` are files with one term a line, `tagger` is the folder of a trained model and
    `tagger_map` sends its labels to PHI types, "" to leave one out. `keep` lists PHI types that stay in the text.
    """

    title = "deidentification"
    mode: str = _optional("mask", partial(require_choice, choices=("mask", "tag", "surrogate")))
    languages: tuple[str, ...] = _optional(("en",), _some_texts)
    staff: Path | None = _optional(None, _optional_path)  # noqa: RUF009
    wards: Path | None = _optional(None, _optional_path)  # noqa: RUF009
    allowed: Path | None = _optional(None, _optional_path)  # noqa: RUF009
    mrn_patterns: tuple[str, ...] = _optional((), _texts)
    secret: Path | None = _optional(None, _optional_path)  # noqa: RUF009
    tagger: Path | None = _optional(None, _optional_path)  # noqa: RUF009
    tagger_map: tuple[tuple[str, str], ...] = _optional((), _text_table)
    keep: tuple[str, ...] = _optional((), _texts)
    threshold: float = _optional(0.4, partial(require_float, minimum=0.0, maximum=1.0))
    date_order: str = _optional("auto", partial(require_choice, choices=("auto", "dmy", "mdy")))


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """A `site.toml`, every path in it absolute.

    Attributes:
        path: The file.
        site: Its `[site]`.
        keys: Its `[keys]`.
        policy: Its `[policy]`; None where there is no such table, which suits a trial on made-up records.
        deidentification: Its `[deidentification]`; None where there is no such table.
        preparation: Its `[preparation]`; the defaults where there is none.
    """

    path: Path
    site: SiteTable
    keys: KeysTable
    policy: Policy | None = None
    deidentification: DeidentificationTable | None = None
    preparation: PreparationTable = PreparationTable()  # noqa: RUF009


_TABLES = ("site", "keys")
_open: dict[tuple[Path, str], Site] = {}
_opening = Lock()


def read_settings(path: Path | str) -> SiteSettings:
    """Read a `site.toml`.

    Raises:
        PlanError: The file cannot be read, or a field is missing, unknown or not usable; the sentence names
            file and field.
    """
    path = Path(path).expanduser().absolute()
    table = _read_toml(path)
    try:
        require_known_keys("the site file", table, [*_TABLES, "policy", "preparation", "deidentification"])
        for name in _TABLES:
            if name not in table:
                raise ValidationError(f"[{name}] is missing.")
        site, keys = SiteTable.from_table(table["site"]), KeysTable.from_table(table["keys"])
        cleaned = table.get("deidentification")
        deidentification = None if cleaned is None else DeidentificationTable.from_table(cleaned)
        preparation = PreparationTable.from_table(table.get("preparation", {}))
    except ValidationError as error:
        raise PlanError(f"{path}: {error}") from None
    policy = table.get("policy")
    if policy is not None and not isinstance(policy, dict):
        raise PlanError(f"{path}: [policy] must be a table, not {policy!r}.")
    return SiteSettings(
        path=path,
        site=_anchored(site, path.parent),
        keys=_anchored(keys, path.parent),
        policy=None if policy is None else Policy.from_table(policy, site_file=path),
        deidentification=None if deidentification is None else _anchored(deidentification, path.parent),
        preparation=preparation.anchored(path.parent),
    )


def open_site(path: Path | str, plan_path: Path | str = "") -> Site:
    """Return the site that a `site.toml` describes; one process opens each site once.

    Args:
        path: The `site.toml`.
        plan_path: The plan, where `site.toml` names none; the server gives it.

    Raises:
        PlanError: The site file, plan or roster is not usable, or they do not belong together.
        InputError: The key, the records or the model cannot be used.
        PolicyError: The site's policy does not allow the plan.
    """
    name = (Path(path).expanduser().resolve(), str(plan_path))
    # Two messages at once must not build two sites: what a site answered is kept in its memory.
    with _opening:
        if name not in _open:
            _open[name] = _build(read_settings(path), plan_path)
        return _open[name]


def introduce(path: Path | str, plan_path: Path | str = "") -> Envelope:
    """Return a site's answer to `hello`, without its records and its model.

    A node is asked within seconds, and Flower starts a new process for it, which must not wait for torch.

    Args:
        path: The `site.toml`.
        plan_path: As for `open_site`.

    Raises:
        PlanError, InputError, PolicyError: As for `open_site`.
    """
    settings = read_settings(path)
    plan, roster = _agreement(settings, plan_path)
    _checked_key(settings, plan, roster)
    return Envelope(kind=HELLO, header={"site": settings.site.name, "plan_hash": plan.hash})


def _build(settings: SiteSettings, plan_path: Path | str) -> Site:
    """Make the site, cheapest checks first."""
    # torch comes in here, in the process that trains.
    from client.site import Site
    from client.training_notes import read_training_notes
    from common.host import ModelHost

    site = settings.site
    plan, roster = _agreement(settings, plan_path)
    key = _checked_key(settings, plan, roster)
    notes = read_training_notes(site.data, plan, settings.preparation)
    site.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Site(
        name=site.name,
        plan=plan,
        roster=roster,
        notes=notes,
        host=ModelHost.build(plan, device=site.device),
        spool=site.spool,
        identity_key=key,
    )


def _agreement(settings: SiteSettings, plan_path: Path | str) -> tuple[Plan, Roster]:
    """Return plan and roster, which must belong together."""
    if settings.site.plan is None and not str(plan_path):
        raise PlanError(f"{settings.path}: site.plan is missing, and the run names no plan either.")
    plan = read_plan(settings.site.plan or Path(plan_path).expanduser())
    roster = read_roster(settings.site.roster)
    roster.require_digest(plan.federation.roster_sha256)
    return plan, roster


def _checked_key(settings: SiteSettings, plan: Plan, roster: Roster) -> Ed25519PrivateKey:
    """Return the identity key, if the roster lists this site with it and the policy allows the plan."""
    site = settings.site
    if site.name not in roster:
        raise PlanError(f"{settings.path}: site.name is {site.name!r}; {site.roster} has no such member.")
    key = load_identity_key(settings.keys.identity)
    if key.public_key().public_bytes_raw() != roster.member(site.name).identity_key:
        raise PlanError(
            f"{settings.path}: keys.identity is not the key that {site.roster} lists for {site.name}; the "
            "roster must be made anew, and approved by every site, when a site changes its key."
        )
    if settings.policy is not None:
        approved = Approvals.load(settings.policy.approvals, key.public_key())
        settings.policy.check(facts_of(plan, sites=len(roster)), approved=approved)
    return key


def _anchored(table: _Table, folder: Path) -> _Table:
    """Return the table with its paths taken from `folder`."""
    values = {one.name: getattr(table, one.name) for one in dataclasses.fields(table)}
    paths = {name: folder / value for name, value in values.items() if isinstance(value, Path)}
    return dataclasses.replace(table, **paths)


def _read_toml(path: Path) -> dict[str, Any]:
    """Parse the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path} does not exist; give the path of a site.toml.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read as UTF-8 text ({type(error).__name__}).") from None
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path} is not valid TOML: {error}.") from None
