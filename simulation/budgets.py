"""Simulated sites' keys, ledgers and policies, in folders that may outlive a run.

A real site's policy is its operator's. A simulated site writes one for itself when it first meets a private
plan: it lets that plan through once, reserve included, and keeps that limit for every later run. Approval is
automatic here and nowhere else.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.keys import load_identity_key, make_identity_key
from client.ledger import Account, Ledger
from client.policy import Policy
from client.private_round import Budget
from common.accounting import RDPFilter
from common.errors import InputError
from common.files import write_once
from common.plan import Plan
from common.private_plan import most_trainings, private_section, round_mechanism, whole_epsilon

ACCOUNT = "records"
_MOST = 10_000_000


class SiteFolders:
    """A folder with one folder a site: `identity.pem`, `policy.toml`, `ledger/` and, apart from it, `witness/`.

    Args:
        folder: Where they are; made where absent.
        max_epsilon: The limit that a site writes into its policy at its first private plan; 0 lets that plan
            through once.
    """

    def __init__(self, folder: Path, *, max_epsilon: float = 0.0) -> None:
        self.folder = folder
        self.max_epsilon = max_epsilon

    def identity_key(self, name: str) -> Ed25519PrivateKey:
        """Return a site's identity key, made at first use."""
        path = self._site(name) / "identity.pem"
        if not path.exists():
            make_identity_key(path)
        return load_identity_key(path)

    @contextmanager
    def budgets(self, plan: Plan, keys: Mapping[str, Ed25519PrivateKey]) -> Iterator[dict[str, Budget]]:
        """Open every site's ledger with its key; yield budgets by site, none where the plan is not private.

        Raises:
            LedgerError: A ledger is not the one that was left, or is open elsewhere.
            InputError: A site has another limit than the one asked for.
        """
        with ExitStack() as stack:
            if plan.privacy is None:
                yield {}
                return
            yield {name: self._budget(plan, name, key, stack) for name, key in keys.items()}

    def _budget(self, plan: Plan, name: str, key: Ed25519PrivateKey, stack: ExitStack) -> Budget:
        folder = self._site(name)
        policy = self._policy(plan, folder)
        database, witness = folder / "ledger" / "ledger.db", folder / "witness" / "ledger.json"
        new = not database.exists() and not witness.exists()
        if new:
            for path in (database, witness):
                path.parent.mkdir(mode=0o700, exist_ok=True)
            Ledger.create(path=database, witness=witness, key=key)
        ledger = Ledger(path=database, witness=witness, key=key, limit=policy.limit)
        stack.callback(ledger.close)
        if not ledger.spent():
            privacy = private_section(plan)
            ledger.declare(
                Account(
                    name=ACCOUNT,
                    unit=privacy.unit,
                    delta=privacy.delta,
                    declaration=f"All records of the simulated site {name}.",
                )
            )
        return Budget(ledger=ledger, account=ACCOUNT, policy=policy, approved={plan.hash})

    def _policy(self, plan: Plan, folder: Path) -> Policy:
        """Read the site's policy, written at its first private plan."""
        path = folder / "policy.toml"
        table = tomllib.loads(write_once(path, tomli_w.dumps(self._first_policy(plan))))
        policy = Policy.from_table(table, site_file=path)
        if self.max_epsilon and policy.max_epsilon != self.max_epsilon:
            raise InputError(
                f"{path} has max_epsilon {policy.max_epsilon:g}, and {self.max_epsilon:g} was asked for; a site's "
                "limit is set once, so leave the option out, or change the file if that is what you mean."
            )
        return policy

    def _first_policy(self, plan: Plan) -> dict[str, object]:
        """Return a policy that lets this plan through once and is silent on all else."""
        privacy = private_section(plan)
        return {
            "max_epsilon": self.max_epsilon or lifetime_epsilon(plan),
            "max_delta": privacy.delta,
            "approvals": "approvals.json",
            "required_unit": privacy.unit,
            "min_noise_multiplier": 0.0,
            "max_q": 1.0,
            "max_steps": _MOST,
            "max_rounds": _MOST,
            "max_recharges": _MOST,
            "min_cohort": 1,
            "min_collusion_tolerance": 0,
            "secure_aggregation_mandatory": False,
        }

    def _site(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder


def lifetime_epsilon(plan: Plan) -> float:
    """Return the least lifetime limit under which a site can go through the whole plan, reserve included."""
    privacy = private_section(plan)
    spent = RDPFilter(epsilon=1.0, delta=privacy.delta).spent([round_mechanism(plan)] * most_trainings(plan))
    # Sums in another order may differ in the last bits.
    return max(spent, whole_epsilon(plan).epsilon) * (1 + 1e-9)
