"""The ledger: it charges first, never refunds, never forgets, and notices when it was made to."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import client.ledger_vault
from client.ledger import Account, Charge, Ledger, LifetimeLimit, SignedHead
from client.ledger_store import LedgerStore
from client.witness import read_witness
from common.accounting import Mechanism, PoissonSubsampledGaussian, RDPFilter
from common.errors import LedgerError, ValidationError
from common.hash_chain import forge_link

SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
LIMIT = LifetimeLimit(max_epsilon=8.0, max_delta=1e-5)
ROUND = PoissonSubsampledGaussian(q=0.2, noise_multiplier=1.5, steps=10)
PLAN, OTHER_PLAN, UPDATE = "a" * 64, "b" * 64, "c" * 64


class Site:
    """The folders of one site, and how its ledger is opened."""

    def __init__(self, root: Path) -> None:
        self.path, self.witness = root / "ledger" / "ledger.db", root / "elsewhere" / "witness.json"
        self.path.parent.mkdir()
        self.witness.parent.mkdir()

    def create(self) -> SignedHead:
        return Ledger.create(path=self.path, witness=self.witness, key=KEY)

    def open(self, **options: Any) -> Ledger:
        defaults: dict[str, Any] = {"key": KEY, "limit": LIMIT}
        return Ledger(path=self.path, witness=self.witness, **defaults | options)

    def copy(self, name: str) -> Path:
        return Path(shutil.copy2(self.path, self.path.with_name(name)))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.create()
    with site.open() as ledger:
        ledger.declare(account("ward"))
    return site


@pytest.fixture
def ledger(site: Site) -> Iterator[Ledger]:
    with site.open() as ledger:
        yield ledger


def account(name: str, **fields: Any) -> Account:
    defaults: dict[str, Any] = {"unit": "patient", "delta": 1e-5, "declaration": "Everybody since 2019."}
    return Account(name=name, **defaults | fields)


def charge(server_round: int = 1, *, mechanisms: tuple[Mechanism, ...] = (ROUND,), **fields: Any) -> Charge:
    defaults: dict[str, Any] = {
        "account": "ward",
        "unit": "patient",
        "plan_hash": PLAN,
        "run_id": "run-1",
        "attempt": 0,
        "rounds": 50,
        "reserve_rounds": 5,
    }
    return Charge(server_round=server_round, mechanisms=mechanisms, **defaults | fields)


def charges(ledger: Ledger) -> int:
    return sum(one.charges for one in ledger.spent())


class TestCharging:
    def test_a_receipt_is_on_both_disks_before_it_is_returned(self, site: Site) -> None:
        seen: list[tuple[str, int, int]] = []

        def look(stage: str) -> None:
            database = len(LedgerStore(site.path).read())
            witness = read_witness(site.witness)
            assert witness is not None
            seen.append((stage, database, witness.sequence))

        with site.open(on_stage=look) as ledger:
            receipt = ledger.charge(charge())
        assert receipt.sequence == 3
        assert seen == [("before-database", 2, 2), ("before-witness", 3, 2), ("after-witness", 3, 3)]

    def test_it_refuses_before_it_writes_once_the_limit_would_pass(self, site: Site, ledger: Ledger) -> None:
        left = ledger.rounds_left("ward", [ROUND])
        assert left == 7
        for number in range(1, left + 1):
            assert ledger.charge(charge(number)).spent.epsilon <= 8.0
        before = site.path.read_bytes(), site.witness.read_bytes()
        with pytest.raises(
            LedgerError, match=r"max_epsilon is 8; nothing was charged and no data was touched"
        ):
            ledger.charge(charge(left + 1))
        assert (site.path.read_bytes(), site.witness.read_bytes()) == before
        assert charges(ledger) == left
        assert ledger.rounds_left("ward", [ROUND]) == 0
        # A cheaper round still fits: the limit was not spent, it was not passed.
        assert 0 < ledger.remaining("ward") < 0.6

    def test_the_limit_holds_across_plans_runs_and_restarts(self, site: Site) -> None:
        asked: list[Mechanism] = []
        for number in range(1, 30):
            one = PoissonSubsampledGaussian(q=0.1, noise_multiplier=1.0 + number % 3, steps=10)
            with site.open() as ledger:
                try:
                    ledger.charge(
                        charge(mechanisms=(one,), plan_hash=f"{number:064x}", run_id=f"run-{number}")
                    )
                except LedgerError:
                    break
                asked.append(one)
                assert len(ledger.by_job()) == number
        assert 3 < len(asked) < 29
        assert RDPFilter(epsilon=8.0, delta=1e-5).spent(asked) <= 8.0
        with site.open() as ledger:
            (budget,) = ledger.spent()
        assert budget.spent.epsilon == RDPFilter(epsilon=8.0, delta=1e-5).spent(asked)
        assert (budget.spent.unit, budget.spent.delta, budget.charges) == ("patient", 1e-5, len(asked))

    def test_training_a_round_again_is_charged_again(self, ledger: Ledger) -> None:
        first = ledger.charge(charge(1))
        again = ledger.charge(charge(1))
        retried = ledger.charge(charge(1, attempt=1))
        assert [one.recharge for one in (first, again, retried)] == [False, True, True]
        assert first.spent.epsilon < again.spent.epsilon < retried.spent.epsilon
        (job,) = ledger.by_job()
        assert (job.rounds, job.charges) == (1, 3)

    def test_no_more_recharges_than_the_plan_reserves(self, ledger: Ledger) -> None:
        ledger.charge(charge(1, reserve_rounds=1))
        ledger.charge(charge(1, reserve_rounds=1))
        with pytest.raises(LedgerError, match=r"reserve_rounds \(1\) are used up"):
            ledger.charge(charge(1, reserve_rounds=1))
        ledger.charge(charge(2, reserve_rounds=1))

    def test_no_more_trainings_than_the_plans_epsilon_covers(self, ledger: Ledger) -> None:
        for number in (1, 2, 7):
            ledger.charge(charge(number, rounds=2, reserve_rounds=1))
        with pytest.raises(LedgerError, match="all that its plan's epsilon covers"):
            ledger.charge(charge(8, rounds=2, reserve_rounds=1))

    def test_sending_the_spooled_update_again_is_free(self, site: Site) -> None:
        with site.open() as ledger:
            receipt = ledger.charge(charge(1))
            ledger.record_spooled(receipt, UPDATE)
            spent = ledger.spent()
        with site.open() as ledger:  # After a restart, as after a crash.
            for _ in range(3):
                again = ledger.resend(plan_hash=PLAN, run_id="run-1", server_round=1, update_hash=UPDATE)
                assert (again.sequence, again.hash, again.resend) == (receipt.sequence, receipt.hash, True)
            assert ledger.spent() == spent

    @pytest.mark.parametrize(
        "other",
        [{"plan_hash": OTHER_PLAN}, {"run_id": "run-2"}, {"server_round": 2}, {"update_hash": "d" * 64}],
    )
    def test_no_other_update_passes_as_the_spooled_one(self, ledger: Ledger, other: dict[str, Any]) -> None:
        ledger.record_spooled(ledger.charge(charge(1)), UPDATE)
        same: dict[str, Any] = {
            "plan_hash": PLAN,
            "run_id": "run-1",
            "server_round": 1,
            "update_hash": UPDATE,
        }
        with pytest.raises(LedgerError, match="training it again is charged again"):
            ledger.resend(**same | other)

    def test_one_charge_pays_for_one_update(self, ledger: Ledger) -> None:
        receipt = ledger.charge(charge(1))
        ledger.record_spooled(receipt, UPDATE)
        with pytest.raises(LedgerError, match="another training needs another charge"):
            ledger.record_spooled(receipt, "d" * 64)
        with pytest.raises(LedgerError, match="another training needs another charge"):
            ledger.record_spooled(ledger.charge(charge(2)), UPDATE)

    def test_there_is_no_way_to_refund(self, site: Site, ledger: Ledger) -> None:
        ledger.charge(charge(1))
        connection = sqlite3.connect(site.path)
        for statement in ("DELETE FROM entries", "UPDATE entries SET body = '{}'", "REPLACE INTO entries "
                          "SELECT * FROM entries WHERE sequence = 3"):  # fmt: skip
            connection.execute("PRAGMA recursive_triggers = ON")
            with pytest.raises(sqlite3.IntegrityError, match="ledger entries"):
                connection.execute(statement)
        connection.close()
        public = {name for name in dir(Ledger) if not name.startswith("_")}
        assert public == {
            "adopt_witness", "by_job", "charge", "check_echo", "close", "create", "declare", "forecast",
            "head", "record_spooled", "remaining", "resend", "rotate_key", "rounds_left", "spent",
        }  # fmt: skip

    def test_forecasting_writes_nothing(self, site: Site, ledger: Ledger) -> None:
        before = site.path.read_bytes()
        after = ledger.forecast("ward", [ROUND] * 6)
        assert after.epsilon == pytest.approx(RDPFilter(epsilon=8, delta=1e-5).spent([ROUND] * 6))
        assert site.path.read_bytes() == before

    def test_lowering_the_limit_stops_and_never_goes_below_nothing(self, site: Site) -> None:
        with site.open() as ledger:
            ledger.charge(charge(1))
        with site.open(limit=LifetimeLimit(max_epsilon=1.0, max_delta=1e-5)) as ledger:
            assert ledger.remaining("ward") == 0.0
            with pytest.raises(LedgerError, match="max_epsilon is 1"):
                ledger.charge(charge(2))
        with (
            site.open(limit=LifetimeLimit(max_epsilon=8.0, max_delta=1e-6)) as ledger,
            pytest.raises(LedgerError, match="max_delta is now 1e-06"),
        ):
            ledger.charge(charge(2))

    @pytest.mark.parametrize(
        "fields",
        [
            {"plan_hash": "A" * 64},
            {"run_id": "a b"},
            {"attempt": -1},
            {"mechanisms": ()},
            {"fingerprint": "x"},
            {"unit": "sentence"},
        ],
    )
    def test_a_malformed_charge_is_bad_input(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            charge(**{"server_round": 1} | fields)


class TestAccounts:
    def test_a_second_account_must_be_declared_disjoint_from_every_other(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match=r"disjoint from every other account \(ward\)"):
            ledger.declare(account("clinic"))
        ledger.declare(account("clinic", disjoint_from=("ward",)))
        with pytest.raises(LedgerError, match=r"\(clinic, ward\)"):
            ledger.declare(account("icu", disjoint_from=("clinic",)))

    def test_accounts_are_spent_apart(self, ledger: Ledger) -> None:
        ledger.declare(account("clinic", disjoint_from=("ward",)))
        ledger.charge(charge(1))
        ward, clinic = ledger.spent()
        assert ward.charges == 1
        assert clinic.spent.epsilon == 0.0
        assert ledger.remaining("clinic") == 8.0

    def test_an_account_cannot_be_started_afresh(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="exists already"):
            ledger.declare(account("ward"))

    def test_one_more_note_opens_no_new_budget(self, ledger: Ledger) -> None:
        first = ledger.charge(charge(1, fingerprint="1" * 64))
        second = ledger.charge(charge(2, fingerprint="2" * 64))
        assert second.spent.epsilon > first.spent.epsilon

    def test_a_plan_of_another_unit_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="kept per 'patient'"):
            ledger.charge(charge(1, unit="record"))

    def test_an_unknown_account_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match=r"no account 'wrad' in the ledger; it has ward"):
            ledger.charge(charge(1, account="wrad"))

    def test_a_delta_above_the_limit_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(LedgerError, match="max_delta is 1e-05"):
            ledger.declare(account("clinic", delta=1e-3, disjoint_from=("ward",)))


CRASH = """
import os, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from client.ledger import Charge, Ledger, LifetimeLimit
from common.accounting import PoissonSubsampledGaussian

def die(stage):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

ledger = Ledger(path=Path(sys.argv[1]), witness=Path(sys.argv[2]), on_stage=die,
    key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
    limit=LifetimeLimit(max_epsilon=8.0, max_delta=1e-5))
ledger.charge(Charge(account="ward", unit="patient", plan_hash="a" * 64, run_id="run-1", server_round=1,
    attempt=0, rounds=50, reserve_rounds=5,
    mechanisms=(PoissonSubsampledGaussian(q=0.2, noise_multiplier=1.5, steps=10),)))
die("before-training")
Path(sys.argv[1] + ".trained").touch()
"""


class TestCrashes:
    @pytest.mark.parametrize(
        ("stage", "charged"),
        [("before-database", 0), ("before-witness", 1), ("after-witness", 1), ("before-training", 1)],
    )
    def test_kill_9_never_refunds_and_never_trains_uncharged(
        self, site: Site, stage: str, charged: int
    ) -> None:
        command = [sys.executable, "-c", CRASH, str(site.path), str(site.witness), stage]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert not Path(f"{site.path}.trained").exists()
        with site.open() as ledger:
            assert charges(ledger) == charged
            # The witness has caught up, so that from here on the charge cannot be taken back.
            witness = read_witness(site.witness)
            assert witness is not None
            assert witness.sequence == 2 + charged
            assert ledger.charge(charge(1)).recharge is (charged == 1)
            assert charges(ledger) == charged + 1

    def test_the_child_trains_where_nothing_stops_it(self, site: Site) -> None:
        command = [sys.executable, "-c", CRASH, str(site.path), str(site.witness), "never"]
        assert subprocess.run(command, check=False).returncode == 0
        assert Path(f"{site.path}.trained").exists()

    def test_a_ledger_whose_making_was_cut_short_opens(self, site: Site, tmp_path: Path) -> None:
        (tmp_path / "new").mkdir()
        fresh = Site(tmp_path / "new")
        fresh.create()
        fresh.witness.unlink()  # Stopped between the database and its first witness.
        with fresh.open() as ledger:
            ledger.declare(account("ward"))
        assert fresh.witness.exists()


def truncated(site: Site, old: Path) -> None:
    connection = sqlite3.connect(site.path)
    connection.executescript("DROP TRIGGER entries_stay; DELETE FROM entries WHERE sequence > 2;")
    connection.close()


def emptied(site: Site, old: Path) -> None:
    connection = sqlite3.connect(site.path)
    connection.executescript("DROP TRIGGER entries_stay; DELETE FROM entries;")
    connection.close()


def edited(site: Site, old: Path) -> None:
    connection = sqlite3.connect(site.path)
    connection.executescript(
        "DROP TRIGGER entries_are_final;"
        "UPDATE entries SET body = replace(body, '\"steps\":10', '\"steps\":1') WHERE sequence = 3;"
    )
    connection.close()


def resealed(site: Site, old: Path) -> None:
    """Edit an entry and mend every hash after it; only the signatures cannot be mended."""
    links = LedgerStore(site.path).read()
    connection = sqlite3.connect(site.path)
    connection.execute("DROP TRIGGER entries_are_final")
    previous, stranger = links[1].hash, Ed25519PrivateKey.generate()
    for link in links[2:]:
        body = link.body.replace('"steps":10', '"steps":1')
        new = forge_link(
            domain="fedward ledger v1",
            sequence=link.sequence,
            kind=link.kind,
            time=link.time,
            body=body,
            previous=previous,
            key=stranger,
        )
        connection.execute(
            "UPDATE entries SET body=?, previous=?, hash=?, signature=? WHERE sequence=?",
            (body, previous, new.hash, new.signature, link.sequence),
        )
        previous = new.hash
    connection.commit()
    connection.close()


def retyped(site: Site, old: Path) -> None:
    connection = sqlite3.connect(site.path)
    connection.executescript(
        "DROP TRIGGER entries_are_final; UPDATE entries SET body = x'00' WHERE sequence = 3;"
    )
    connection.close()


def middle_removed(site: Site, old: Path) -> None:
    connection = sqlite3.connect(site.path)
    connection.executescript("DROP TRIGGER entries_stay; DELETE FROM entries WHERE sequence = 3;")
    connection.close()


def restored(site: Site, old: Path) -> None:
    shutil.copy2(old, site.path)


def deleted(site: Site, old: Path) -> None:
    site.path.unlink()


def scribbled(site: Site, old: Path) -> None:
    site.path.write_bytes(b"not a database at all, but long enough to be read" * 100)


def zero_bytes(site: Site, old: Path) -> None:
    site.path.write_bytes(b"")


def replaced(site: Site, old: Path) -> None:
    witness = site.witness.read_bytes()
    site.path.unlink()
    site.witness.unlink()
    site.create()
    site.witness.write_bytes(witness)


def witness_deleted(site: Site, old: Path) -> None:
    site.witness.unlink()


def witness_edited(site: Site, old: Path) -> None:
    site.witness.write_text(site.witness.read_text().replace('"sequence":4', '"sequence":2'))


def witness_junk(site: Site, old: Path) -> None:
    site.witness.write_text("[]")


def opened_to_others(site: Site, old: Path) -> None:
    site.path.chmod(0o644)


TAMPERING: list[tuple[Callable[[Site, Path], None], str]] = [
    (truncated, r"has seen 4 entries and .* has 2: it was cut or restored from an older copy"),
    (emptied, "its entries were removed"),
    (edited, "entry 3 was changed after it was written"),
    (resealed, "entry 3 is not signed with the key that it should be"),
    (retyped, "entry 3 was changed after it was written"),
    (middle_removed, "entry 3 carries number 4"),
    (restored, r"has seen 4 entries and .* has 2"),
    (deleted, "the ledger is gone and its witness"),
    (scribbled, "not a whole ledger"),
    (zero_bytes, "not a whole ledger"),
    (replaced, "is of another ledger"),
    (witness_deleted, "the witness is missing, 4 entries behind"),
    (witness_edited, "witness was changed"),
    (witness_junk, "witness was changed"),
    (opened_to_others, "mode is 0644"),
]


@pytest.mark.parametrize(("tamper", "sentence"), TAMPERING, ids=lambda value: getattr(value, "__name__", ""))
class TestTampering:
    def test_it_is_refused_at_opening(
        self, site: Site, tamper: Callable[[Site, Path], None], sentence: str
    ) -> None:
        old = self.spend(site)
        tamper(site, old)
        for read_only in (False, True):
            with pytest.raises(LedgerError, match=sentence):
                site.open(read_only=read_only)

    def test_it_is_refused_while_the_agent_runs(
        self, site: Site, tamper: Callable[[Site, Path], None], sentence: str
    ) -> None:
        old = self.spend(site)
        with site.open() as ledger:
            tamper(site, old)
            with pytest.raises(LedgerError, match=sentence):
                ledger.charge(charge(3))

    def spend(self, site: Site) -> Path:
        old = site.copy("old.db")
        with site.open() as ledger:
            ledger.charge(charge(1))
            ledger.charge(charge(2))
        return old


class TestHeads:
    def test_a_rollback_of_the_whole_host_is_caught_by_the_echo(self, site: Site) -> None:
        old, old_witness = site.copy("old.db"), site.witness.read_bytes()
        with site.open() as ledger:
            ledger.charge(charge(1))
            echo = ledger.head()
        restored(site, old)
        site.witness.write_bytes(old_witness)
        with site.open() as ledger:  # Nothing at the site shows it ...
            assert charges(ledger) == 0
            with pytest.raises(
                LedgerError, match=r"head that the server sent back has seen 3 entries .* has 2"
            ):
                ledger.charge(charge(2), echo=echo)  # ... but the server remembers.
            assert charges(ledger) == 0
            ledger.charge(charge(2))
            with pytest.raises(LedgerError, match="knows another entry 3"):
                ledger.check_echo(echo)

    def test_an_echo_of_an_earlier_head_is_fine(self, ledger: Ledger) -> None:
        echo = SignedHead.from_dict(ledger.head().to_dict())
        ledger.charge(charge(1), echo=echo)
        ledger.charge(charge(2), echo=echo)

    def test_a_new_ledger_in_the_place_of_a_deleted_one_is_caught_by_the_echo(self, site: Site) -> None:
        with site.open() as ledger:
            echo = ledger.head()
        site.path.unlink()
        site.witness.unlink()
        site.create()
        with site.open() as ledger, pytest.raises(LedgerError, match="of another ledger"):
            ledger.check_echo(echo)

    def test_an_echo_that_the_site_did_not_sign_is_refused(self, ledger: Ledger) -> None:
        head = ledger.head()
        forged = SignedHead.sign(
            ledger=head.ledger, sequence=1, digest=head.hash, key=Ed25519PrivateKey.generate()
        )
        with pytest.raises(LedgerError, match="not signed with this site's key"):
            ledger.charge(charge(1), echo=forged)
        assert charges(ledger) == 0

    def test_heads_say_nothing_about_what_was_spent(self, ledger: Ledger) -> None:
        assert ledger.head().to_dict().keys() == {"v", "ledger", "sequence", "hash", "signature"}


class TestKeys:
    new = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))

    def test_a_new_key_takes_over_what_was_spent(self, site: Site) -> None:
        with site.open() as ledger:
            ledger.charge(charge(1))
            echo = ledger.head()
            ledger.rotate_key(self.new)
            ledger.charge(charge(2), echo=echo)
        with site.open(key=self.new) as ledger:
            assert charges(ledger) == 2
            ledger.charge(charge(3), echo=echo)
        with pytest.raises(LedgerError, match="not kept with this site's key"):
            site.open()

    def test_a_crash_while_rotating_leaves_the_new_key(self, site: Site) -> None:
        def stop(stage: str) -> None:
            if stage == "before-witness":
                raise KeyboardInterrupt

        with site.open(on_stage=stop) as ledger, pytest.raises(KeyboardInterrupt):
            ledger.rotate_key(self.new)
        with site.open(key=self.new) as ledger:  # The witness is still the old key's.
            ledger.charge(charge(1))

    def test_the_old_key_signs_nothing_after_the_new_one(self, site: Site) -> None:
        with site.open() as ledger:
            ledger.rotate_key(self.new)
        self.forge(site, KEY, "charge", charge(1).to_body())
        with pytest.raises(LedgerError, match="entry 4 is not signed with the key that it should be"):
            site.open(key=self.new)

    def test_no_stranger_hands_a_ledger_over_to_a_site(self, site: Site) -> None:
        from client.ledger_book import key_body

        stranger = Ed25519PrivateKey.generate()
        site.path.unlink()
        site.witness.unlink()
        Ledger.create(path=site.path, witness=site.witness, key=stranger)
        elsewhere = key_body("0" * 64, KEY)  # A consent of this site, taken from another place.
        self.forge(site, stranger, "key", elsewhere)
        with pytest.raises(LedgerError, match="hands over to a key that did not consent"):
            site.open()

    def forge(self, site: Site, key: Ed25519PrivateKey, kind: str, body: str) -> None:
        last = LedgerStore(site.path).read()[-1]
        link = forge_link(
            domain="fedward ledger v1",
            sequence=last.sequence + 1,
            kind=kind,
            time=last.time,
            body=body,
            previous=last.hash,
            key=key,
        )
        LedgerStore(site.path).append(link)


class TestWitness:
    def test_an_older_witness_is_refused_until_the_operator_takes_it(self, site: Site) -> None:
        old = site.witness.read_bytes()
        with site.open() as ledger:
            ledger.charge(charge(1))
            ledger.charge(charge(2))
            site.witness.write_bytes(old)
            with pytest.raises(LedgerError, match="older than the ledger, 2 entries behind"):
                ledger.charge(charge(3))
            ledger.adopt_witness()
            assert charges(ledger) == 2
            ledger.charge(charge(3))
        assert [one.kind for one in LedgerStore(site.path).read()][-2:] == ["witness-adopted", "charge"]

    def test_adopting_never_forgives_a_database_that_is_behind(self, site: Site) -> None:
        old = site.copy("old.db")
        with site.open() as ledger:
            ledger.charge(charge(1))
            restored(site, old)
            with pytest.raises(LedgerError, match="has seen 3 entries"):
                ledger.adopt_witness()

    def test_it_must_lie_elsewhere(self, site: Site) -> None:
        with pytest.raises(ValidationError, match="in the ledger's own folder"):
            Ledger.create(path=site.path, witness=site.path.with_name("witness.json"), key=KEY)


class TestFiles:
    def test_only_the_owner_can_read_them(self, site: Site) -> None:
        modes: list[int] = []

        def look(stage: str) -> None:
            files = [*site.path.parent.iterdir(), *site.witness.parent.iterdir()]
            modes.extend(stat.S_IMODE(one.stat().st_mode) for one in files)

        old = os.umask(0)
        try:
            with site.open(on_stage=look) as ledger:
                ledger.charge(charge(1))
        finally:
            os.umask(old)
        assert set(modes) == {0o600}

    def test_making_one_over_another_changes_nothing(self, site: Site) -> None:
        before = site.path.read_bytes()
        with pytest.raises(LedgerError, match="there already"):
            site.create()
        assert site.path.read_bytes() == before
        assert len(list(site.path.parent.iterdir())) == 2  # The ledger and its lock, no leftovers.

    def test_making_one_over_a_lost_one_is_refused(self, site: Site) -> None:
        site.path.unlink()
        with pytest.raises(LedgerError, match="the ledger is gone"):
            site.create()

    def test_opening_none_makes_none(self, tmp_path: Path) -> None:
        site = Site(tmp_path)
        with pytest.raises(LedgerError, match="there is no ledger"):
            site.open()
        assert list(site.path.parent.iterdir()) == []

    def test_a_database_that_vanishes_does_not_come_back_empty(self, site: Site) -> None:
        link = LedgerStore(site.path).read()[-1]
        site.path.unlink()
        with pytest.raises(LedgerError, match="cannot be opened"):
            LedgerStore(site.path).append(link)
        assert not site.path.exists()

    def test_another_key_does_not_open_it(self, site: Site) -> None:
        with pytest.raises(LedgerError, match="not kept with this site's key"):
            site.open(key=Ed25519PrivateKey.generate())

    def test_two_agents_do_not_share_one(self, site: Site) -> None:
        hold = (
            "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX);"
            "print(flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hold, f"{site.path}.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(LedgerError, match="open in another process, probably a second agent"):
                site.open()
            with site.open(read_only=True) as looking:
                assert looking.remaining("ward") == 8.0
                with pytest.raises(LedgerError, match="for reading only"):
                    looking.charge(charge(1))
            other.communicate()
        site.open().close()

    def test_a_database_locked_by_another_program_is_not_waited_for_in_vain(
        self, site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("client.ledger_store._LOCK_SECONDS", 0.1)
        other = sqlite3.connect(site.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked by another process"):
            ledger.charge(charge(1))
        other.execute("ROLLBACK")
        other.close()
        assert charges(ledger) == 0

    def test_a_database_on_a_full_disk_charges_nothing(
        self, site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = LedgerStore._connect

        def full(self: LedgerStore) -> sqlite3.Connection:
            connection = real(self)
            connection.execute("PRAGMA max_page_count = 1")  # As many as there are already.
            return connection

        large = tuple(
            PoissonSubsampledGaussian(q=0.001, noise_multiplier=500.0 + number, steps=1)
            for number in range(400)
        )
        monkeypatch.setattr(LedgerStore, "_connect", full)
        with pytest.raises(LedgerError, match=r"could not be written .* nothing was charged .* Make room"):
            ledger.charge(charge(1, mechanisms=large))
        monkeypatch.undo()
        assert charges(ledger) == 0
        ledger.charge(charge(1, mechanisms=large))

    def test_a_witness_on_a_full_disk_keeps_the_charge_and_gives_no_receipt(
        self, site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, head: SignedHead) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(client.ledger_vault, "write_witness", full)
        for _ in range(3):  # However often it is tried, one charge at most lies ahead of the witness.
            with pytest.raises(LedgerError, match="nothing may be trained"):
                ledger.charge(charge(1))
        monkeypatch.undo()
        assert charges(ledger) == 1
        assert ledger.charge(charge(1)).recharge

    def test_a_newer_format_is_left_alone(self, site: Site) -> None:
        connection = sqlite3.connect(site.path)
        connection.execute("PRAGMA user_version = 2")
        connection.close()
        with pytest.raises(LedgerError, match="format 2"):
            site.open()

    def test_the_disk_has_it_when_the_call_returns(self, site: Site) -> None:
        connection = LedgerStore(site.path)._connect()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        connection.close()
