"""One site's own file, `site.toml`.

```toml
[site]
name = "st-mary"            # as in the roster
data = "records"            # a folder with `train`, in any format that ingestion reads
roster = "roster.toml"
spool = "spool"             # finished updates and the audit log, mode 0700
plan = "plan.toml"          # the plan that this site has agreed to
device = "auto"

[keys]
identity = "identity.pem"   # mode 0600

[policy]                    # see client.policy; a private plan needs it
[ledger]                    # see client.site_tables; a private plan needs it
[preparation]               # see client.preparation_settings
[deidentification]          # see docs/deidentification.md
[agent]                     # how `fedward-site run` runs; every key has a default
[server]                    # where the SuperNode connects to; not needed with --supernode none
```

Paths are taken from the file's own folder. The server changes none of this. `docs/site.md` explains every key.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.deidentification_settings import DeidentificationTable
from client.policy import Policy
from client.preparation_settings import PreparationTable
from client.site_tables import (
    AgentTable,
    KeysTable,
    LedgerTable,
    RequiredSection,
    ServerTable,
    SiteTable,
    Table,
    anchored,
)
from common.errors import PlanError, ValidationError
from common.validation import require_known_keys


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """A `site.toml`, every path in it absolute.

    Attributes:
        path: The file.
        site: Its `[site]`.
        keys: Its `[keys]`.
        policy: Its `[policy]`; None where there is no such table, which suits a trial on made-up records.
        ledger: Its `[ledger]`; None where there is none.
        agent: Its `[agent]`; the defaults where there is none.
        server: Its `[server]`; None where there is none.
        preparation: Its `[preparation]`; the defaults where there is none.
        deidentification: Its `[deidentification]`; None where there is none.
    """

    path: Path
    site: SiteTable
    keys: KeysTable
    policy: Policy | None = None
    ledger: LedgerTable | None = None
    agent: AgentTable = AgentTable()  # noqa: RUF009
    server: ServerTable | None = None
    preparation: PreparationTable = PreparationTable()  # noqa: RUF009
    deidentification: DeidentificationTable | None = None


_NEEDED = ("site", "keys")
_TABLES: dict[str, type[RequiredSection]] = {
    "site": SiteTable,
    "keys": KeysTable,
    "ledger": LedgerTable,
    "agent": AgentTable,
    "server": ServerTable,
    "deidentification": DeidentificationTable,
}


def read_settings(path: Path | str) -> SiteSettings:
    """Read a `site.toml`.

    Raises:
        PlanError: The file cannot be read, or a field is missing, unknown or not usable; the sentence names
            file and field.
    """
    path = Path(path).expanduser().absolute()
    table = _read_toml(path)
    try:
        require_known_keys("the site file", table, [*_TABLES, "policy", "preparation"])
        for name in _NEEDED:
            if name not in table:
                raise ValidationError(f"[{name}] is missing.")
        sections = {name: _section(_TABLES[name], table[name], path) for name in _TABLES if name in table}
        preparation = PreparationTable.from_table(table.get("preparation", {})).anchored(path.parent)
    except ValidationError as error:
        raise PlanError(f"{path}: {error}") from None
    sections.setdefault("agent", anchored(AgentTable(), path.parent))
    return SiteSettings(
        path=path, policy=_policy(table.get("policy"), path), preparation=preparation, **sections
    )


def _section(kind: type[Table], table: object, path: Path) -> Any:
    """Return one table, its paths absolute."""
    return anchored(kind.from_table(table), path.parent)


def _policy(table: object, path: Path) -> Policy | None:
    """Return the policy, where the file has one."""
    if table is None:
        return None
    if not isinstance(table, dict):
        raise PlanError(f"{path}: [policy] must be a table, not {table!r}.")
    return Policy.from_table(table, site_file=path)


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
