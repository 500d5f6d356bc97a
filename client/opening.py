"""From a `site.toml` to the site that it describes: plan, roster, key, policy, ledger, records and model.

The cheapest checks come first. A private plan needs a policy, an approval and a ledger with the account that the
site file names; nothing here makes a ledger or an account, which is the operator's word to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.approvals import Approvals
from client.keys import load_identity_key
from client.plan_facts import facts_of
from client.settings import SiteSettings
from common.errors import LedgerError, PlanError, PolicyError
from common.plan import Plan, read_plan
from common.roster import Roster, read_roster

if TYPE_CHECKING:
    from client.private_round import Budget
    from client.site import Site
    from common.training import Progress


@contextmanager
def open_site(
    settings: SiteSettings, *, on_step: Callable[[str, Progress], None] | None = None
) -> Iterator[Site]:
    """Open the site that a `site.toml` describes; its ledger is closed when the block ends.

    Args:
        settings: The file.
        on_step: Called after each optimizer step; see `client.site.Site`.

    Raises:
        PlanError: The site file, plan or roster is not usable, or they do not belong together.
        InputError: The key, the records or the model cannot be used.
        PolicyError: The site's policy does not allow the plan, or a private plan finds no policy or ledger.
        LedgerError: The ledger is not the one that was left, or another agent has it open.
    """
    # torch comes in here, in the process that trains.
    from client.site import Site
    from client.training_notes import read_training_notes
    from common.host import ModelHost

    site = settings.site
    plan, roster = agreement(settings)
    key = checked_key(settings, plan, roster)
    with ExitStack() as stack:
        budget = _budget(settings, plan, key, stack)
        notes = read_training_notes(
            site.data,
            plan,
            settings.preparation,
            deidentification=settings.deidentification,
            device=site.device,
        )
        site.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield Site(
            name=site.name,
            plan=plan,
            roster=roster,
            notes=notes,
            host=ModelHost.build(plan, device=site.device),
            spool=site.spool,
            identity_key=key,
            budget=budget,
            on_step=on_step,
            admit=lambda: _require_approved(settings, plan, key),
        )


def agreement(settings: SiteSettings) -> tuple[Plan, Roster]:
    """Return the site's plan and roster.

    Raises:
        PlanError: One is not usable, or they do not belong together.
    """
    plan = read_plan(settings.site.plan)
    roster = read_roster(settings.site.roster)
    roster.require_digest(plan.federation.roster_sha256)
    return plan, roster


def checked_key(settings: SiteSettings, plan: Plan, roster: Roster) -> Ed25519PrivateKey:
    """Return the identity key, if the roster lists this site with it and the policy allows the plan.

    Raises:
        PlanError: The roster does not list the site, or lists it with another key.
        InputError: The key cannot be used.
        PolicyError: The policy does not allow the plan, or the plan is private and there is no policy.
    """
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
    elif plan.privacy is not None:
        raise PolicyError(
            f"{settings.path}: the plan is private and there is no [policy]; say what the site will ever spend."
        )
    return key


def _require_approved(settings: SiteSettings, plan: Plan, key: Ed25519PrivateKey) -> None:
    """Raise if the operator has taken the plan's approval back since the agent started."""
    if settings.policy is None:
        return
    if plan.hash not in Approvals.load(settings.policy.approvals, key.public_key()):
        raise PolicyError("The operator has taken back the approval of this plan; nothing more is trained.")


def _budget(settings: SiteSettings, plan: Plan, key: Ed25519PrivateKey, stack: ExitStack) -> Budget | None:
    """Open the ledger that a private plan is charged to."""
    from client.ledger import Ledger
    from client.private_round import Budget

    if plan.privacy is None or settings.policy is None:
        return None
    table = settings.ledger
    if table is None:
        raise PolicyError(
            f"{settings.path}: the plan is private and there is no [ledger] to charge; see docs/site.md."
        )
    ledger = Ledger(path=table.path, witness=table.witness, key=key, limit=settings.policy.limit)
    stack.callback(ledger.close)
    accounts = {one.account.name: one.account for one in ledger.spent()}
    declared = table.to_account()
    if declared.name not in accounts:
        raise LedgerError(
            f"{table.path} has no account {declared.name!r}; declare the population with `fedward-site declare`."
        )
    if accounts[declared.name] != declared:
        raise LedgerError(
            f"{settings.path}: [ledger] describes account {declared.name!r} in another way than {table.path} has "
            "it; an account stays as it was declared."
        )
    approved = Approvals.load(settings.policy.approvals, key.public_key())
    return Budget(ledger=ledger, account=declared.name, policy=settings.policy, approved=approved)
