"""The files that a site's commands work on: named one by one, or by the `site.toml` that knows them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.keys import load_identity_key
from client.policy import Policy, read_policy
from client.settings import SiteSettings, read_settings
from client.site_tables import LedgerTable
from common.errors import InputError, PlanError


@dataclass(frozen=True, kw_only=True)
class LedgerFiles:
    """What opens a ledger."""

    ledger: Path
    witness: Path
    key: Ed25519PrivateKey = field(repr=False)
    policy: Policy


@dataclass(frozen=True, kw_only=True)
class PlanFiles:
    """What a plan is approved with.

    Attributes:
        plan: The plan.
        roster: Its roster.
        key: The site's identity key.
        policy: The site's policy.
        audit: The site's audit log; None where no site file names it.
        ledger: The site's ledger and account; None where no site file names them.
    """

    plan: Path
    roster: Path
    key: Ed25519PrivateKey = field(repr=False)
    policy: Policy
    audit: Path | None
    ledger: LedgerTable | None


def ledger_files(
    site: Path | None, *, ledger: Path | None, witness: Path | None, key: Path | None, policy: Path | None
) -> LedgerFiles:
    """Return the files of a ledger command; what is named by itself goes before what the site file says.

    Raises:
        InputError: A file is named nowhere, or cannot be read.
    """
    settings = None if site is None else read_settings(site)
    table = None if settings is None else settings.ledger
    if settings is not None and table is None and (ledger is None or witness is None):
        raise PlanError(f"{settings.path}: [ledger] is missing; it names the ledger's files.")
    return LedgerFiles(
        ledger=_chosen("--ledger", ledger, None if table is None else table.path),
        witness=_chosen("--witness", witness, None if table is None else table.witness),
        key=_key(key, settings),
        policy=_policy(policy, settings),
    )


def plan_files(
    site: Path | None, *, plan: Path | None, roster: Path | None, key: Path | None, policy: Path | None
) -> PlanFiles:
    """Return the files of an approval; what is named by itself goes before what the site file says.

    Raises:
        InputError: A file is named nowhere, or cannot be read.
    """
    settings = None if site is None else read_settings(site)
    return PlanFiles(
        plan=_chosen("PLAN", plan, None if settings is None else settings.site.plan),
        roster=_chosen("--roster", roster, None if settings is None else settings.site.roster),
        key=_key(key, settings),
        policy=_policy(policy, settings),
        audit=None if settings is None else settings.site.spool / "audit.jsonl",
        ledger=None if settings is None else settings.ledger,
    )


def _chosen(option: str, named: Path | None, from_site: Path | None) -> Path:
    """Return the file that is named by itself, or else the site file's."""
    path = named or from_site
    if path is None:
        raise InputError(f"{option} is missing; give it, or --site with the site.toml that names every file.")
    return path


def _key(named: Path | None, settings: SiteSettings | None) -> Ed25519PrivateKey:
    """Return the identity key."""
    return load_identity_key(_chosen("--key", named, None if settings is None else settings.keys.identity))


def _policy(named: Path | None, settings: SiteSettings | None) -> Policy:
    """Return the policy."""
    if named is None and settings is not None:
        if settings.policy is None:
            raise PlanError(f"{settings.path}: [policy] is missing; it says what the site takes part in.")
        return settings.policy
    return read_policy(_chosen("--policy", named, None))
