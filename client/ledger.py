"""The site's privacy ledger: what was spent on whom, and the refusal to spend more.

A round is charged before it is trained: database, then a witness file elsewhere, then the receipt
without which nothing trains. There are no refunds: a charge whose training never happened stays.

Formal guarantees
-----------------
While the files are whole, everything that was released from an account is (epsilon, delta)-DP for the
account's unit, at the site's limit, whatever jobs were asked for and in whatever order: `charge` returns a
receipt only if the `RDPFilter` admits the new mechanisms after all earlier ones. A database that is behind
its witness, or behind a head that the server or a peer saw, is refused. A host whose database *and* witness
were put back together, with nobody to echo a later head, cannot be told from one that stood still.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.ledger_book import Account, Book, Charge, require_hash
from client.ledger_vault import LedgerVault, Opened
from client.witness import SignedHead
from common.accounting import Epsilon, Mechanism, RDPFilter, as_subsampled, rdp_epsilon
from common.errors import LedgerError
from common.hash_chain import canonical_json
from common.validation import require_float

__all__ = ["Account", "AccountBudget", "Charge", "Job", "Ledger", "LifetimeLimit", "Receipt", "SignedHead"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LifetimeLimit:
    """The most that a site will ever spend on one account.

    Attributes:
        max_epsilon: Above 0.
        max_delta: The largest delta that an account may have.
    """

    max_epsilon: float
    max_delta: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        require_float("max_epsilon", self.max_epsilon, minimum=0, maximum=1e6, open_minimum=True)
        require_float("max_delta", self.max_delta, minimum=0, maximum=1, open_minimum=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """Leave to train once, or to send again what was trained.

    Attributes:
        sequence: Number of the charge's entry.
        hash: Hash of that entry.
        recharge: Whether the same round of the same run had been charged before.
        resend: Whether nothing was charged, because the update was trained under an earlier charge.
        spent: What the account has spent, by the lifetime filter.
    """

    sequence: int
    hash: str
    recharge: bool
    resend: bool
    spent: Epsilon


@dataclass(frozen=True, kw_only=True, slots=True)
class AccountBudget:
    """What an account has spent and has left.

    Attributes:
        account: The account.
        spent: By the lifetime filter: the smallest limit that would have admitted everything so far.
        limit: The site's limit in epsilon, at the account's delta.
        charges: Trainings charged.
    """

    account: Account
    spent: Epsilon
    limit: float
    charges: int

    @property
    def remaining(self) -> float:
        """Epsilon left under the limit; 0 where the limit was lowered below what was spent."""
        return max(0.0, self.limit - self.spent.epsilon)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one run of one plan was charged.

    Attributes:
        account: The account's name.
        plan_hash: SHA-256 of the plan.
        run_id: The fedward run.
        rounds: Different rounds charged.
        charges: Trainings charged; above `rounds` by the recharges.
        epsilon: Of this job alone, by Rényi differential privacy. Jobs' epsilons add up to more than `spent`.
    """

    account: str
    plan_hash: str
    run_id: str
    rounds: int
    charges: int
    epsilon: Epsilon


class Ledger:
    """An open ledger. One process writes; others may look.

    Args:
        path: The database, made by `Ledger.create`.
        witness: The witness file, in another folder, best on another disk.
        key: The site's identity key.
        limit: The site's lifetime limit, from its policy.
        read_only: Do not lock and never write, as `fedward-site budget` does beside a running agent.
        on_stage: Called with `before-database`, `before-witness` and `after-witness` of every entry, so
            that a test can stop the process there.

        adopt: Whether to write the witness anew first, as `adopt_witness` does: without it, a ledger whose
            witness was lost does not open.

    Raises:
        LedgerError: The files are not the ledger that was left, or another process has it open.
    """

    def __init__(
        self,
        *,
        path: Path,
        witness: Path,
        key: Ed25519PrivateKey,
        limit: LifetimeLimit,
        read_only: bool = False,
        adopt: bool = False,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> None:
        """Lock the ledger and check that it is whole."""
        self.limit = limit
        self._threads = threading.RLock()
        self._vault = LedgerVault(path=path, witness=witness, key=key, read_only=read_only, on_stage=on_stage)
        try:
            if adopt:
                self.adopt_witness()
            self._vault.open()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(*, path: Path, witness: Path, key: Ed25519PrivateKey) -> SignedHead:
        """Make an empty ledger and its witness.

        Raises:
            LedgerError: Either file is there already, or one cannot be written.
        """
        return LedgerVault.create(path=path, witness=witness, key=key)

    def declare(self, account: Account) -> SignedHead:
        """Open an account for a population. The declaration is signed with the site's key as it is written.

        Raises:
            LedgerError: The name is taken, the delta is above the site's limit, or a further account is not
                declared disjoint from every account there is.
        """
        with self._opened() as opened:
            accounts = opened.book.accounts
            if account.name in accounts:
                raise LedgerError(
                    f"account {account.name!r} exists already, with what was spent from it; a ledger has no "
                    "way to start it afresh."
                )
            if account.delta > self.limit.max_delta:
                raise LedgerError(
                    f"account {account.name!r} has delta {account.delta:g}; the policy's max_delta is "
                    f"{self.limit.max_delta:g}."
                )
            if set(account.disjoint_from) != set(accounts):
                raise LedgerError(
                    f"account {account.name!r} must be declared disjoint from every other account "
                    f"({', '.join(sorted(accounts)) or 'there is none'}): a patient in two accounts would "
                    "have two budgets. New notes of the same patients belong to the account there is."
                )
            self._vault.append(opened, "account", account.to_body())
        return self.head()

    def charge(self, charge: Charge, *, echo: SignedHead | None = None) -> Receipt:
        """Write the charge for one training; only then may it start.

        Args:
            charge: What will be trained and released.
            echo: The last head of this ledger that the server saw, where it sends one.

        Returns:
            The receipt, once database and witness are on the disk.

        Raises:
            LedgerError: The charge would pass the limit, its account or number does not fit, the ledger is
                not whole, or it cannot be written. Nothing may be trained then. Nothing was written either,
                save where the witness alone could not be: that charge stays, as after a crash at that moment.
        """
        with self._opened() as opened:
            if echo is not None:
                self._vault.require_echo(opened, echo)
            recharge = self._require_in_plan(opened.book, charge)
            spent = self._require_in_limit(opened.book, charge)
            link = self._vault.append(opened, "charge", charge.to_body())
            return Receipt(
                sequence=link.sequence, hash=link.hash, recharge=recharge, resend=False, spent=spent
            )

    def record_spooled(self, receipt: Receipt, update_hash: str) -> None:
        """Note that a finished, already noised update lies in the spool, so that sending it again is free.

        Args:
            receipt: Of the charge that it was trained under.
            update_hash: SHA-256 of the spooled file.

        Raises:
            LedgerError: The receipt is not of this ledger, or its charge has an update already.
        """
        require_hash("update_hash", update_hash)
        with self._opened() as opened:
            book, number = opened.book, receipt.sequence
            if number not in book.charges or opened.links[number - 1].hash != receipt.hash:
                raise LedgerError(f"entry {number} is not the charge that the receipt is for.")
            if number in book.spooled.values() or update_hash in book.spooled:
                raise LedgerError(
                    f"charge {number} has an update already, or the update has a charge; another training "
                    "needs another charge."
                )
            body = canonical_json({"charge": number, "update_hash": update_hash})
            self._vault.append(opened, "spooled", body)

    def resend(self, *, plan_hash: str, run_id: str, server_round: int, update_hash: str) -> Receipt:
        """Return the receipt under which a spooled update may be sent again, uncharged.

        Raises:
            LedgerError: No such update was recorded for this round: it must be trained, and charged, again.
        """
        with self._opened() as opened:
            number = opened.book.spooled.get(update_hash, 0)
            charge = opened.book.charges.get(number)
            asked = (plan_hash, run_id, server_round)
            if charge is None or (charge.plan_hash, charge.run_id, charge.server_round) != asked:
                raise LedgerError(
                    f"no update with this hash was recorded for round {server_round} of run {run_id!r}; "
                    "training it again is charged again."
                )
            return Receipt(
                sequence=number,
                hash=opened.links[number - 1].hash,
                recharge=False,
                resend=True,
                spent=self._spent(opened.book, opened.book.accounts[charge.account]),
            )

    def head(self) -> SignedHead:
        """Return where the ledger stands, signed, for the server to keep and echo."""
        with self._opened() as opened:
            return self._vault.head(opened)

    def check_echo(self, echo: SignedHead) -> None:
        """Return if the ledger contains a head that somebody else saw.

        Raises:
            LedgerError: It does not, or the head is not this site's.
        """
        with self._opened() as opened:
            self._vault.require_echo(opened, echo)

    def spent(self) -> tuple[AccountBudget, ...]:
        """Return what every account has spent and has left, in the order of their declarations."""
        with self._opened() as opened:
            return tuple(self._budget(opened.book, one) for one in opened.book.accounts.values())

    def remaining(self, account: str) -> float:
        """Return the epsilon that an account has left under the lifetime filter, from 0."""
        with self._opened() as opened:
            return self._budget(opened.book, _account(opened.book, account)).remaining

    def forecast(self, account: str, mechanisms: Sequence[Mechanism]) -> Epsilon:
        """Return what an account would have spent after these mechanisms too; nothing is written."""
        with self._opened() as opened:
            return self._spent(opened.book, _account(opened.book, account), mechanisms)

    def rounds_left(self, account: str, mechanisms: Sequence[Mechanism], *, most: int = 1_000_000) -> int:
        """Return how many more trainings with these mechanisms an account admits, at most `most`."""
        with self._opened() as opened:
            sieve = self._filter(_account(opened.book, account))
            charged = opened.book.mechanisms(account)
        one_round = [as_subsampled(one) for one in mechanisms]
        low, high = 0, most + 1
        while high - low > 1:
            middle = (low + high) // 2
            more = [dataclasses.replace(one, steps=one.steps * middle) for one in one_round]
            low, high = (middle, high) if sieve.admits(charged, more) else (low, middle)
        return low

    def by_job(self) -> tuple[Job, ...]:
        """Return what each run of each plan was charged, in the order of their first charge."""
        with self._opened() as opened:
            jobs = opened.book.jobs().items()
            return tuple(_job(opened.book.accounts[name[0]], charges) for name, charges in jobs)

    def adopt_witness(self) -> SignedHead:
        """Write the witness anew from a whole database, on the operator's word, and record that it was done.

        For a witness that was lost or restored from an older copy. The database's own chain is verified; that
        its end was not cut off rests on the operator, and on the next echo of the server.

        Raises:
            LedgerError: The database is not whole, or the witness shows that it is behind.
        """
        with self._threads:
            opened = self._vault.open_without_witness()
            self._vault.append(opened, "witness-adopted", canonical_json({"entries": len(opened.links)}))
        return self.head()

    def rotate_key(self, new: Ed25519PrivateKey) -> SignedHead:
        """Hand the ledger over to a new identity key, signed by the old one and consented to by the new.

        Everything charged so far stays charged. From here on the ledger opens with the new key alone; heads
        that the old key signed still count as echoes.

        Raises:
            LedgerError: The ledger is not whole, or cannot be written.
        """
        with self._opened() as opened:
            self._vault.hand_over(opened, new)
        return self.head()

    def close(self) -> None:
        """Let another process open the ledger."""
        self._vault.close()

    def __enter__(self) -> Ledger:
        """Return the ledger."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the ledger."""
        self.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Opened]:
        """Hold other threads off, and yield the ledger as its files say it is now."""
        with self._threads:
            yield self._vault.open()

    def _require_in_plan(self, book: Book, charge: Charge) -> bool:
        """Return whether this is a recharge, or raise if the plan does not cover another training."""
        earlier = [one.server_round for one in book.charges.values() if one.job == charge.job]
        recharge = charge.server_round in earlier
        recharges = len(earlier) - len(set(earlier))
        if recharge and recharges >= charge.reserve_rounds:
            raise LedgerError(
                f"round {charge.server_round} of run {charge.run_id!r} was trained before, and the plan's "
                f"reserve_rounds ({charge.reserve_rounds}) are used up; nothing was charged. Go on with "
                "the next round, or agree on a plan with a larger reserve."
            )
        if len(earlier) >= charge.rounds + charge.reserve_rounds:
            raise LedgerError(
                f"run {charge.run_id!r} was charged {len(earlier)} trainings, which is all that its plan's "
                "epsilon covers (rounds and reserve_rounds); nothing was charged."
            )
        return recharge

    def _require_in_limit(self, book: Book, charge: Charge) -> Epsilon:
        """Return what the account will have spent, or raise if the charge may not be made."""
        account = _account(book, charge.account)
        if charge.unit != account.unit:
            raise LedgerError(
                f"the plan's unit is {charge.unit!r} and account {account.name!r} is kept per "
                f"{account.unit!r}; charge an account of the plan's unit."
            )
        if account.delta > self.limit.max_delta:
            raise LedgerError(
                f"account {account.name!r} has delta {account.delta:g}, and the policy's max_delta is now "
                f"{self.limit.max_delta:g}; nothing more may be charged to it."
            )
        after = self._spent(book, account, charge.mechanisms)
        if after.epsilon > self.limit.max_epsilon:
            before = self._spent(book, account)
            raise LedgerError(
                f"round {charge.server_round} would bring account {account.name!r} from epsilon "
                f"{before.epsilon:.3f} to {after.epsilon:.3f} at delta {account.delta:g}, and the site's "
                f"max_epsilon is {self.limit.max_epsilon:g}; nothing was charged and no data was touched."
            )
        return after

    def _filter(self, account: Account) -> RDPFilter:
        """Return the filter that an account's charges pass through."""
        return RDPFilter(epsilon=self.limit.max_epsilon, delta=account.delta)

    def _spent(self, book: Book, account: Account, more: Sequence[Mechanism] = ()) -> Epsilon:
        """Return what an account has spent, and would have after `more`."""
        spent = self._filter(account).spent([*book.mechanisms(account.name), *more])
        return Epsilon(epsilon=spent, delta=account.delta, unit=account.unit, method="rdp-filter")

    def _budget(self, book: Book, account: Account) -> AccountBudget:
        """Return an account's budget."""
        charges = sum(one.account == account.name for one in book.charges.values())
        return AccountBudget(
            account=account,
            spent=self._spent(book, account),
            limit=self.limit.max_epsilon,
            charges=charges,
        )


def _account(book: Book, name: str) -> Account:
    """Return an account."""
    if name not in book.accounts:
        raise LedgerError(
            f"there is no account {name!r} in the ledger; it has "
            f"{', '.join(sorted(book.accounts)) or 'none'}. Declare the population first."
        )
    return book.accounts[name]


def _job(account: Account, charges: Sequence[Charge]) -> Job:
    """Return what one job's charges add up to."""
    mechanisms = [one for charge in charges for one in charge.mechanisms]
    return Job(
        account=account.name,
        plan_hash=charges[0].plan_hash,
        run_id=charges[0].run_id,
        rounds=len({one.server_round for one in charges}),
        charges=len(charges),
        epsilon=Epsilon(
            epsilon=rdp_epsilon(mechanisms, delta=account.delta),
            delta=account.delta,
            unit=account.unit,
            method="rdp",
        ),
    )
