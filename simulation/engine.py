"""A federation on one machine: split the data, make the sites, and run the server's own code over a grid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context

from client.app import Handler, make_client_app
from client.deidentification_settings import DeidentificationTable
from client.preprocessing_build import DEIDENTIFY, Recipe, prepare_notes, recipe_of
from client.private_round import Budget
from client.site import Site
from common.errors import InputError
from common.host import ModelHost, schema_of
from common.ingestion import Dataset, read_dataset, require_annotated
from common.plan import ENGINES, Plan
from common.private_plan import check_private_plan
from common.records import Note
from common.roster import Member, Roster
from common.tokenization import unit_id
from common.training import Progress
from common.validation import require_choice
from server.app import PULLERS
from server.federation import FederationJob, open_run, run_federation
from server.warmup import require_disjoint
from simulation.budgets import SiteFolders
from simulation.faults import FaultSchedule
from simulation.grid import InProcessGrid
from simulation.partition import partition
from simulation.public_notes import warmup_notes
from simulation.ray_engine import require_ray, run_with_ray
from simulation.watch import RunWatch


@dataclass(frozen=True, kw_only=True)
class SimulatedFederation:
    """A plan bound to a roster, and each site's notes and identity key.

    Attributes:
        plan: The plan, with the roster's hash in it.
        roster: One member a site, weighted by its number of notes.
        notes: Each site's training notes after the plan's preparation, by name.
        keys: Each site's identity key, by name.
    """

    plan: Plan
    roster: Roster
    notes: Mapping[str, Sequence[Note]] = field(repr=False)
    keys: Mapping[str, Ed25519PrivateKey] = field(repr=False)


def read_data(folder: Path, plan: Plan) -> Dataset:
    """Read a data folder with the plan's label schema.

    Raises:
        InputError: A file is not usable, or holds notes that nobody has annotated.
    """
    data = read_dataset(folder, schema_of(plan), required=("train", "test"))
    for report in data.report.values():
        require_annotated(report.counts, report.path)
    return data


def federate(
    plan: Plan,
    train: Sequence[Note],
    *,
    key_of: Callable[[str], Ed25519PrivateKey] | None = None,
) -> SimulatedFederation:
    """Divide training notes over sites as the plan's `[simulation]` says, and make a roster of them.

    Args:
        plan: The plan; its roster hash is filled in.
        train: All training notes.
        key_of: Returns a site's identity key; without it, keys follow from the plan's seed, so that a resumed
            simulation has the same roster. Identity keys of a simulation protect nothing.

    Raises:
        InputError: The notes cannot be divided as asked, or lack the ids of the plan's privacy unit.
    """
    minimum = plan.federation.minimum_cohort
    if plan.simulation.sites < minimum:
        raise InputError(
            f"simulation.sites is {plan.simulation.sites}, fewer than federation.minimum_cohort, which is {minimum}; "
            "no round could ever be completed, so raise the one or lower the other."
        )
    # Each site prepares its own notes, as a real one does: no stage sees two sites.
    shares = [prepare_notes(share, simulated_recipe(plan)) for share in split_notes(plan, train)]
    names = [f"site-{i + 1}" for i in range(len(shares))]
    keys = {name: key_of(name) if key_of else _identity_key(plan.seed, name) for name in names}
    members = tuple(
        Member(
            name=name,
            identity_key=keys[name].public_key().public_bytes_raw(),
            public_units=_declared_units(plan, share),
        )
        for name, share in zip(names, shares, strict=True)
    )
    roster = Roster(members)
    bound = replace(plan, federation=replace(plan.federation, roster_sha256=roster.digest().hex()))
    return SimulatedFederation(
        plan=bound, roster=roster, notes=dict(zip(names, shares, strict=True)), keys=keys
    )


def simulated_recipe(plan: Plan) -> Recipe:
    """Return the plan's stages for a site without a site file, which de-identifies by English patterns."""
    asked = any(choice.name == DEIDENTIFY for choice in plan.preparation.stages)
    return recipe_of(plan, deidentification=DeidentificationTable(mode="tag") if asked else None)


def _declared_units(plan: Plan, share: Sequence[Note]) -> int:
    """Return what a simulated site declares in public: its notes, or its privacy units under a private plan."""
    if plan.privacy is None:
        return len(share)
    return len({unit_id(note, plan.privacy.unit) for note in share})


def split_notes(plan: Plan, train: Sequence[Note]) -> list[list[Note]]:
    """Divide notes over the plan's simulated sites."""
    section = plan.simulation
    method = "by_column" if section.partition == "column" else section.partition
    return partition(
        train,
        method=method,
        sites=section.sites,
        seed=plan.seed,
        minimum_examples=section.minimum_examples,
        alpha=section.exponent if method == "power_law" else section.alpha,
        column=section.column if method == "by_column" else None,
    )


def simulate(
    plan: Plan,
    data: Dataset,
    out: Path,
    *,
    resume: bool = False,
    replace_run: bool = False,
    faults: Sequence[str] = (),
    watch: RunWatch | None = None,
    host: ModelHost | None = None,
    device: str = "auto",
    engine: str = "inprocess",
    ledgers: Path | None = None,
    max_epsilon: float = 0.0,
) -> dict[str, Any]:
    """Run a federation on this machine and leave a run folder in `out`.

    Args:
        plan: The plan.
        data: Training notes to divide; the server's development and test notes.
        out: The run's folder.
        resume: Continue the run in `out` from its last checkpoint.
        replace_run: Remove an earlier run in `out` first; anything else there is never removed.
        faults: What goes wrong, as `simulation.faults` writes it.
        watch: Shows the progress.
        host: A built model to use; made from the plan by default.
        device: The device of a model that is made here.
        engine: `inprocess`, or `ray` for Flower's own engine on many cores or GPUs; it gives the same weights.
        ledgers: Folder for the sites' keys, policies and privacy ledgers, which then outlive the run; by
            default each private run begins with new ones.
        max_epsilon: The lifetime limit of a site that has none yet; 0 lets this plan through once.

    Raises:
        InputError: The plan, the data or the folder cannot be used; nothing was written.
        RoundError: A round could not be completed; the run can be resumed.
    """
    require_choice("engine", engine, ENGINES)
    if engine == "ray":
        require_ray()
        if plan.privacy is not None:
            raise InputError(
                "A private plan keeps its ledgers in this process; leave out --engine ray, or privacy."
            )
        if faults:
            raise InputError(
                "Faults strike in the in-process engine alone; leave out --engine ray or --fault."
            )
    set_threads(plan)
    kept = None if ledgers is None else SiteFolders(ledgers, max_epsilon=max_epsilon)
    federation = federate(plan, data.train, key_of=kept.identity_key if kept else None)
    check_private_plan(federation.plan, federation.roster)
    public = warmup_notes(plan)
    require_disjoint(public, data.train, "training")
    schedule = FaultSchedule.parse(faults, sites=list(federation.notes), rounds=plan.federation.rounds)
    host = host or ModelHost.build(federation.plan, device=device)
    watch = watch or RunWatch.silent(plan.federation.rounds)
    with (
        open_run(federation.plan, out, resume=resume, replace_run=replace_run) as folder,
        (kept or SiteFolders(folder.path / "spool", max_epsilon=max_epsilon)).budgets(
            federation.plan, federation.keys
        ) as budgets,
    ):
        job = FederationJob(
            plan=federation.plan,
            roster=federation.roster,
            folder=folder,
            host=host,
            devel=data.devel,
            test=data.test,
            listener=watch,
            pullers=0 if engine == "inprocess" else PULLERS,
            warmup_notes=public,
        )
        spool = folder.path.resolve() / "spool"
        if engine == "ray":
            result = run_with_ray(job, site_makers(federation, spool), device=device)
        else:
            sites = make_sites(federation, host, spool, watch, budgets)
            grid = InProcessGrid(
                make_client_app(_handlers(sites)),
                sites,
                faults=schedule,
                on_crash=lambda site: sites[site].forget(),
            )
            result = run_federation(grid, job)
        shutil.rmtree(folder.path / "spool", ignore_errors=True)
    return result


@dataclass(frozen=True, kw_only=True)
class SiteMaker:
    """What a site is made of besides the model, in a form that another process can be given.

    Attributes:
        name: The site's name.
        plan: The plan.
        roster: The roster.
        notes: The site's training notes.
        spool: The site's own folder.
        key: The identity key's 32 private bytes; a simulation's are not secret.
    """

    name: str
    plan: Plan
    roster: Roster
    notes: Sequence[Note] = field(repr=False)
    spool: Path
    key: bytes = field(repr=False)

    def __call__(
        self,
        host: ModelHost,
        on_step: Callable[[str, Progress], None] | None = None,
        budget: Budget | None = None,
    ) -> Site:
        """Make the site around a model."""
        return Site(
            name=self.name,
            plan=self.plan,
            roster=self.roster,
            notes=self.notes,
            host=host,
            spool=self.spool,
            identity_key=Ed25519PrivateKey.from_private_bytes(self.key),
            budget=budget,
            on_step=on_step,
        )


def site_makers(federation: SimulatedFederation, spool: Path) -> list[SiteMaker]:
    """Return what makes each site, in the order of the partitions."""
    return [
        SiteMaker(
            name=name,
            plan=federation.plan,
            roster=federation.roster,
            notes=notes,
            spool=spool / name,
            key=federation.keys[name].private_bytes_raw(),
        )
        for name, notes in federation.notes.items()
    ]


def make_sites(
    federation: SimulatedFederation,
    host: ModelHost,
    spool: Path,
    watch: RunWatch,
    budgets: Mapping[str, Budget] | None = None,
) -> dict[str, Site]:
    """Make every site of a federation around one shared model; `budgets` are needed under a private plan."""
    budgets = budgets or {}
    return {
        maker.name: maker(host, watch.on_step, budgets.get(maker.name))
        for maker in site_makers(federation, spool)
    }


def set_threads(plan: Plan) -> None:
    """Use as many threads as the plan says; 0 leaves torch's own choice."""
    threads = plan.simulation.threads
    if threads:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))


def _handlers(sites: Mapping[str, Site]) -> Any:
    """Return the function that finds the site behind a node."""
    by_partition = list(sites.values())

    def handler_of(context: Context) -> Handler:
        return by_partition[int(context.node_config["partition-id"])].handle

    return handler_of


def _identity_key(seed: int, name: str) -> Ed25519PrivateKey:
    """Derive a site's key from the plan's seed: a simulation's identities are not secret."""
    import hashlib

    digest = hashlib.sha256(f"fedward-simulated-identity-v1\x1f{seed}\x1f{name}".encode()).digest()
    return Ed25519PrivateKey.from_private_bytes(digest)
