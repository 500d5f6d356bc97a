"""A round of a private plan at a site: charge the ledger, train with noise, spool, and nothing else.

The order is the guarantee. A round's model is checked; then, only if the account can pay, the records are
made ready; then the charge is on the disk, in the ledger and in its witness; then the training starts. A
crash after the charge is never refunded: training again is charged again, and only the very update that was
recorded under a charge is sent again for nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.augmentation import Augmenter, UnitViews
from client.heap import keep_freed_memory
from client.ledger import Charge, Ledger, Receipt, SignedHead
from client.plan_facts import facts_of
from client.policy import Policy
from client.private_trainer import PrivateRecipe, PrivateTrainer
from client.round_training import OnStep, PlainTraining, RoundTask, RoundTraining, SiteRecords
from client.sampling import Unit
from client.spool import UpdateSpool
from common.errors import DecodeError, LedgerError, PolicyError
from common.host import ModelHost
from common.messages import LEDGER_HEAD, Scalar
from common.plan import Plan
from common.private_plan import check_private_plan, private_section
from common.records import ModelUpdate
from common.roster import Roster
from common.stages import DELTA

_log = logging.getLogger(__name__)

OnCharge = Callable[[RoundTask, Receipt], None]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a site lets private plans spend.

    Attributes:
        ledger: The site's ledger, open.
        account: The population that is trained on.
        policy: What the site takes part in.
        approved: Hashes of the plans that its operator approved.
    """

    ledger: Ledger = field(repr=False)
    account: str
    policy: Policy
    approved: Container[str] = field(repr=False)


def choose_training(
    *,
    name: str,
    plan: Plan,
    roster: Roster,
    host: ModelHost,
    records: SiteRecords,
    budget: Budget | None,
    on_step: OnStep | None = None,
    on_charge: OnCharge = lambda task, receipt: None,
) -> RoundTraining:
    """Return how this site trains under the plan.

    Raises:
        PolicyError: The plan is private and the site has no ledger, or its policy does not allow the plan.
        PlanError: The plan's privacy promises nothing.
        ModelError: The model cannot be clipped.
    """
    if plan.privacy is None:
        return PlainTraining(
            name=name,
            plan=plan,
            weight=roster.weight(name),
            sites=len(roster),
            host=host,
            records=records,
            on_step=on_step,
        )
    if budget is None:
        raise PolicyError(
            f"The plan is private and site {name} has no privacy ledger to charge; give it one, with an account "
            "for its patients."
        )
    check_private_plan(plan, roster)
    budget.policy.check(facts_of(plan, sites=len(roster)), approved=budget.approved)
    return PrivateTraining(
        name=name,
        plan=plan,
        roster=roster,
        host=host,
        records=records,
        budget=budget,
        on_step=on_step,
        on_charge=on_charge,
    )


class PrivateTraining:
    """Trains under a charge; the update holds the noised delta alone.

    Args:
        name: The site's name.
        plan: The agreed plan.
        roster: The members and their public units.
        host: The model.
        records: What is trained on.
        budget: Where the charge goes.
        on_step: Called after each noised step, on the same machine.
        on_charge: Called once a charge is on the disk.
    """

    def __init__(
        self,
        *,
        name: str,
        plan: Plan,
        roster: Roster,
        host: ModelHost,
        records: SiteRecords,
        budget: Budget,
        on_step: OnStep | None = None,
        on_charge: OnCharge = lambda task, receipt: None,
    ) -> None:
        self.plan = plan
        self.weight = roster.weight(name)
        self.host = host
        self.records = records
        self.budget = budget
        self.on_step = on_step
        self.on_charge = on_charge
        device = next(host.model.parameters()).device
        self.recipe = PrivateRecipe.of(plan, public_units=roster.member(name).public_units, device=device)
        self._augmenter = Augmenter.of(plan, ())
        keep_freed_memory()
        with host.lock:
            self._trainer().check()

    def finish(self, task: RoundTask, spool: UpdateSpool) -> Mapping[str, Scalar]:
        """Send again what was recorded, or charge, train, spool and record.

        Raises:
            LedgerError: The account cannot pay, or the ledger is not the one that was left. Nothing was
                trained.
        """
        echo = _parse_head(task.ledger_head)
        if echo is not None:
            self.budget.ledger.check_echo(echo)
        if not self._recorded(task, spool):
            vector = task.model()
            receipt, units = self._charge(task, echo)
            update = self._fit(vector, units, task.server_round)
            spool.save(update, server_round=task.server_round, model_hash=task.model_hash)
            self.budget.ledger.record_spooled(receipt, spool.digest())
        return {LEDGER_HEAD: json.dumps(self.budget.ledger.head().to_dict())}

    def _recorded(self, task: RoundTask, spool: UpdateSpool) -> bool:
        """Return whether the spool holds this round's update and the ledger knows it."""
        if not spool.holds(server_round=task.server_round, model_hash=task.model_hash):
            return False
        try:
            self.budget.ledger.resend(
                plan_hash=self.plan.hash,
                run_id=task.run_id,
                server_round=task.server_round,
                update_hash=spool.digest(),
            )
        except LedgerError as error:
            # A crash between spooling and recording; or a ledger that the charge will refuse as well.
            _log.warning("The spooled update of round %d is not sent again: %s", task.server_round, error)
            return False
        return True

    def _charge(self, task: RoundTask, echo: SignedHead | None) -> tuple[Receipt, tuple[Unit, ...]]:
        """Return the receipt without which nothing trains, and the units it was paid for."""
        ledger, account = self.budget.ledger, self.budget.account
        privacy = private_section(self.plan)
        fingerprint = None
        # Records are read only if the account can pay, and before it does: bad data must not cost a charge.
        if ledger.rounds_left(account, self.recipe.charged, most=1):
            self.recipe.units(self.records.examples())
            fingerprint = self.records.fingerprint()
        receipt = ledger.charge(
            Charge(
                account=account,
                unit=privacy.unit,
                plan_hash=self.plan.hash,
                run_id=task.run_id,
                server_round=task.server_round,
                attempt=task.attempt,
                mechanisms=self.recipe.charged,
                rounds=self.plan.federation.rounds,
                reserve_rounds=privacy.reserve_rounds,
                fingerprint=fingerprint,
            ),
            echo=echo,
        )
        self.on_charge(task, receipt)
        return receipt, self.recipe.units(self.records.examples())

    def _fit(self, vector: NDArray[np.float32], units: tuple[Unit, ...], server_round: int) -> ModelUpdate:
        """Train the shared model from `vector` with noise and return the change, alone."""
        with self.host.lock:
            self.host.write(vector)
            self._trainer().train(units, server_round=server_round, on_step=self.on_step)
            delta = self.host.read()
            # In place: the model is large, and there is no need for a third copy of it.
            delta -= vector
        return ModelUpdate(fields={DELTA: delta}, weight=self.weight)

    def _trainer(self) -> PrivateTrainer:
        """Return a trainer with fresh secret randomness."""
        return PrivateTrainer(
            self.host.model, self.recipe, pad_id=self.host.encoding.pad_id, views=self._views()
        )

    def _views(self) -> UnitViews | None:
        """Return what makes the views of drawn units, with fresh secret randomness."""
        if self._augmenter is None:
            return None
        return UnitViews(
            self._augmenter,
            notes=self.records.notes,
            encoding=self.host.encoding,
            unit=private_section(self.plan).unit,
            max_windows=self.recipe.max_windows,
            window_key=self.recipe.window_key,
        )


def _parse_head(text: str) -> SignedHead | None:
    """Return the head that the server sent back; its signature is not checked yet."""
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DecodeError("The ledger head in the request is not a table of version 1.")
    return SignedHead.from_dict(values)
