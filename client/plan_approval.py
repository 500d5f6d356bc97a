"""What an operator is shown of a plan, and the approval itself, in the signed list and in the audit log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.approvals import Approvals, RosterMember, describe_roster
from client.ledger import Ledger
from client.plan_facts import facts_of
from client.policy import PlanFacts, describe
from client.site_files import PlanFiles
from common.audit_log import AuditLog
from common.errors import LedgerError, PlanError
from common.plan import Plan, read_plan
from common.private_plan import round_mechanism
from common.roster import read_roster


@dataclass(frozen=True, kw_only=True)
class PlanApproval:
    """A plan that the site's policy allows, before its operator has said yes.

    Attributes:
        facts: The plan's numbers.
        members: The roster as the operator sees it.
        roster_hash: Of the roster, in hexadecimal.
        texts: What the operator is shown, paragraph by paragraph.
    """

    facts: PlanFacts
    members: tuple[RosterMember, ...]
    roster_hash: str
    texts: tuple[str, ...]
    _approvals: Approvals
    _key: Ed25519PrivateKey = field(repr=False)
    _audit: AuditLog | None

    @classmethod
    def of(cls, files: PlanFiles) -> Self:
        """Read a plan and hold it against roster and policy.

        Raises:
            PlanError: Plan and roster do not belong together.
            PolicyError: The policy does not allow the plan.
        """
        agreed, roster = read_plan(files.plan), read_roster(files.roster)
        if agreed.federation.roster_sha256 != roster.digest().hex():
            raise PlanError(
                f"{files.plan} is for another roster than {files.roster}; ask the server for the pair that belongs "
                "together."
            )
        facts = facts_of(agreed, sites=len(roster))
        files.policy.check(facts, approved={facts.plan_hash})
        members = tuple(
            RosterMember(name=m.name, fingerprint=m.fingerprint, public_units=m.public_units) for m in roster
        )
        approvals = Approvals.load(files.policy.approvals, files.key.public_key())
        return cls(
            facts=facts,
            members=members,
            roster_hash=roster.digest().hex(),
            texts=(
                describe(facts),
                *_in_the_ledger(agreed, files),
                describe_roster(members),
                *approvals.changes(facts, members),
            ),
            _approvals=approvals,
            _key=files.key,
            _audit=None if files.audit is None else AuditLog(files.audit, key=files.key),
        )

    def give(self) -> None:
        """Approve the plan.

        Raises:
            FedwardError: The list or the audit log cannot be written; a plan that is not on the log is not approved.
        """
        if self._audit is not None:
            self._audit.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._audit.append(
                "approval",
                plan_hash=self.facts.plan_hash,
                roster_hash=self.roster_hash,
                sites=len(self.members),
                secure_aggregation=self.facts.secure_aggregation,
                **({} if self.facts.epsilon is None else {"epsilon": self.facts.epsilon}),
            )
        self._approvals.approve(self.facts, self.members, self._key)


def _in_the_ledger(plan: Plan, files: PlanFiles) -> tuple[str, ...]:
    """Return what a private plan would do to the site's lifetime account, in a sentence.

    The ledger composes over plans that are chosen as one goes, which costs more than the same steps in one plan;
    an operator who sees the plan's epsilon alone would learn that from a refusal in the middle of a run.
    """
    table = files.ledger
    if plan.privacy is None or table is None:
        return ()
    if not table.path.exists():
        return (
            "There is no ledger yet; after 'fedward-site declare', ask again for what the plan costs in it.",
        )
    rounds, mechanism = plan.federation.rounds, round_mechanism(plan)
    try:
        with Ledger(
            path=table.path,
            witness=table.witness,
            key=files.key,
            limit=files.policy.limit,
            read_only=True,
        ) as ledger:
            before = ledger.forecast(table.account, ()).epsilon
            after = ledger.forecast(table.account, [mechanism] * rounds).epsilon
            admitted = ledger.rounds_left(table.account, [mechanism], most=rounds)
    except LedgerError as error:
        return (f"What the plan costs in the ledger is not known: {error}",)
    limit = files.policy.limit.max_epsilon
    costs = (
        f"In this site's ledger, which counts a lifetime of plans more strictly than one plan, its {rounds} rounds "
        f"bring account {table.account!r} from epsilon {before:.2f} to {after:.2f} of max_epsilon {limit:g}."
    )
    if admitted < rounds:
        costs += f" THE LEDGER WILL REFUSE after {admitted} of {rounds} rounds, and the run goes on without this site."
    return (costs,)
