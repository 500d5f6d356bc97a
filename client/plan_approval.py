"""What an operator is shown of a plan, and the approval itself, in the signed list and in the audit log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.approvals import Approvals, RosterMember, describe_roster
from client.plan_facts import facts_of
from client.policy import PlanFacts, describe
from client.site_files import PlanFiles
from common.audit_log import AuditLog
from common.errors import PlanError
from common.plan import read_plan
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
            texts=(describe(facts), describe_roster(members), *approvals.changes(facts, members)),
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
