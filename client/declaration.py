"""The operator's declaration of the population whose privacy a ledger accounts for."""

from __future__ import annotations

from client.keys import load_identity_key
from client.ledger import Ledger
from client.policy import Policy
from client.settings import SiteSettings
from client.site_tables import LedgerTable
from common.errors import PlanError


def describe_account(settings: SiteSettings) -> str:
    """Return, in words, what the operator is about to declare.

    Raises:
        PlanError: The site file has no `[ledger]` or no `[policy]`.
    """
    table, policy = _tables(settings)
    others = (
        f"No patient of it is in {', '.join(table.disjoint_from)}."
        if table.disjoint_from
        else "It is the ledger's first and only account."
    )
    return (
        f"Account {table.account}, kept per {table.unit}: {table.declaration}\n{others}\nIts lifetime limit is "
        f"epsilon {policy.max_epsilon:g} at delta {table.delta:g}. All training on these people is charged to it."
    )


def declare_account(settings: SiteSettings, *, create: bool = False) -> None:
    """Open the account that `[ledger]` describes.

    Args:
        settings: The site file.
        create: Begin the ledger first.

    Raises:
        PlanError: The site file has no `[ledger]` or no `[policy]`.
        LedgerError: The ledger or the account cannot be made.
    """
    table, policy = _tables(settings)
    key = load_identity_key(settings.keys.identity)
    if create:
        for path in (table.path, table.witness):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Ledger.create(path=table.path, witness=table.witness, key=key)
    with Ledger(path=table.path, witness=table.witness, key=key, limit=policy.limit) as ledger:
        ledger.declare(table.to_account())


def _tables(settings: SiteSettings) -> tuple[LedgerTable, Policy]:
    """Return both tables that a declaration needs."""
    if settings.ledger is None:
        raise PlanError(f"{settings.path}: [ledger] is missing; it describes what is to be declared.")
    if settings.policy is None:
        raise PlanError(f"{settings.path}: [policy] is missing; it says what may be spent.")
    return settings.ledger, settings.policy
