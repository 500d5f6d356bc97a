"""`fedward-site`: a data holder's side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.cli_enrol import enrol
from common.command import run_command

app = typer.Typer(
    name="fedward-site",
    help="Run a site of a federation: its keys and its audit log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
keys = typer.Typer(help="The site's identity key.", no_args_is_help=True)
audit = typer.Typer(help="The site's audit log.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
app.command()(enrol)
console = Console()

KeyFile = Annotated[Path, typer.Argument(help="The key file, PEM.", show_default=False)]
LedgerFile = Annotated[Path, typer.Option("--ledger", help="The ledger's database.")]
WitnessFile = Annotated[Path, typer.Option("--witness", help="The ledger's witness, a file elsewhere.")]
IdentityFile = Annotated[Path, typer.Option("--key", help="The site's identity key.")]
PolicyFile = Annotated[
    Path, typer.Option("--policy", help="A site.toml with [policy], or a file of its fields.")
]


@keys.command("new")
def new_key(
    path: KeyFile,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase to encrypt the file.")
    ] = False,
) -> None:
    """Make an identity key (Ed25519, file mode 0600) and print what the roster needs of it."""
    from client.keys import make_identity_key

    secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True) if passphrase else None
    public = make_identity_key(path, passphrase=secret.encode() if secret else None)
    _show(public)
    console.print(
        f"The private key is in {path}; it never leaves this host. Keep a copy offline.", soft_wrap=True
    )


@keys.command("show")
def show_key(
    path: KeyFile,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for the file's passphrase.")] = False,
) -> None:
    """Print the public half of an identity key and its fingerprint, to be compared out of band."""
    from client.keys import load_identity_key

    secret = typer.prompt("Passphrase", hide_input=True) if passphrase else None
    _show(
        load_identity_key(path, passphrase=secret.encode() if secret else None)
        .public_key()
        .public_bytes_raw()
    )


@keys.command("rotate")
def rotate_key(
    old: Annotated[Path, typer.Option("--old", help="The key that the ledger opens with now.")],
    new: Annotated[Path, typer.Option("--new", help="The key that takes over; make it with `keys new`.")],
    ledger: LedgerFile,
    witness: WitnessFile,
    policy: PolicyFile,
) -> None:
    """Hand the privacy ledger over to a new identity key; everything charged so far stays charged."""
    from client.keys import load_identity_key
    from client.ledger import Ledger
    from client.policy import read_policy

    limit = read_policy(policy).limit
    with Ledger(path=ledger, witness=witness, key=load_identity_key(old), limit=limit) as book:
        book.rotate_key(load_identity_key(new))
    console.print(
        "The ledger opens with the new key alone; the roster and the plan need it too.", soft_wrap=True
    )


@audit.command("verify")
def verify_audit(
    path: Annotated[Path, typer.Argument(help="The audit log, audit.jsonl.", show_default=False)],
    key: Annotated[Path | None, typer.Option(help="The identity key that signed it.")] = None,
) -> None:
    """Check that no line of an audit log was changed, removed or put in."""
    from client.keys import load_identity_key
    from common.audit_log import verify

    public = load_identity_key(key).public_key() if key else None
    entries = verify(path, key=public)
    signed = "chained and signed by this key" if key else "chained (give --key to check the signatures)"
    console.print(f"{path}: {len(entries)} lines, {signed}.", soft_wrap=True)


@app.command()
def budget(
    ledger: LedgerFile,
    witness: WitnessFile,
    key: IdentityFile,
    policy: PolicyFile,
    create: Annotated[
        bool, typer.Option("--create", help="Begin a new ledger; both files must be absent.")
    ] = False,
    adopt_witness: Annotated[
        bool,
        typer.Option(
            "--adopt-witness", help="Write a lost witness anew, on your word that nothing was cut off."
        ),
    ] = False,
) -> None:
    """Show what a site's privacy ledger says was spent, by account and by job, and what is left."""
    from client.keys import load_identity_key
    from client.ledger import Ledger
    from client.policy import read_policy

    identity, limit = load_identity_key(key), read_policy(policy).limit
    if create:
        Ledger.create(path=ledger, witness=witness, key=identity)
    with Ledger(
        path=ledger,
        witness=witness,
        key=identity,
        limit=limit,
        read_only=not adopt_witness,
        adopt=adopt_witness,
    ) as book:
        spent, jobs = book.spent(), book.by_job()
    accounts = Table("account", "unit", "delta", "spent", "limit", "left", "charges", title="Privacy budget")
    for entry in spent:
        accounts.add_row(
            entry.account.name,
            entry.account.unit,
            f"{entry.account.delta:g}",
            f"{entry.spent.epsilon:.3f}",
            f"{entry.limit:g}",
            f"{entry.remaining:.3f}",
            str(entry.charges),
        )
    console.print(accounts)
    runs = Table("account", "plan", "run", "rounds", "charges", "epsilon", title="By job")
    for job in jobs:
        epsilon = f"{job.epsilon.epsilon:.3f}"
        runs.add_row(job.account, job.plan_hash[:12], job.run_id, str(job.rounds), str(job.charges), epsilon)
    console.print(runs)


@app.command()
def approve(
    plan: Annotated[Path, typer.Argument(help="The plan, a TOML file.", show_default=False)],
    roster: Annotated[Path, typer.Option("--roster", help="The roster that the plan names.")],
    key: IdentityFile,
    policy: PolicyFile,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Say in words what a plan would do and cost, who takes part and what changed, and then ask."""
    from client.approvals import Approvals, RosterMember, describe_roster
    from client.keys import load_identity_key
    from client.plan_facts import facts_of
    from client.policy import describe, read_policy
    from common.errors import PlanError
    from common.plan import read_plan
    from common.roster import read_roster

    agreed, members, rules = read_plan(plan), read_roster(roster), read_policy(policy)
    if agreed.federation.roster_sha256 != members.digest().hex():
        raise PlanError(
            f"{plan} is for another roster than {roster}; ask the server for the pair that belongs together."
        )
    identity = load_identity_key(key)
    facts = facts_of(agreed, sites=len(members))
    rules.check(facts, approved={facts.plan_hash})
    listed = [
        RosterMember(name=m.name, fingerprint=m.fingerprint, public_units=m.public_units) for m in members
    ]
    approvals = Approvals.load(rules.approvals, identity.public_key())
    for text in (describe(facts), describe_roster(listed), *approvals.changes(facts, listed)):
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    if not yes and not typer.confirm("Compare the fingerprints out of band. Approve this plan?"):
        console.print("Nothing was approved.")
        raise typer.Exit(1)
    approvals.approve(facts, listed, identity)
    console.print(f"Approved plan {facts.plan_hash[:12]}.", highlight=False)


def main() -> None:
    """Run the command line."""
    run_command(app)


def _show(public: bytes) -> None:
    """Print a public key and its fingerprint."""
    from common.roster import fingerprint

    console.print(f"identity_key = {public.hex()}", soft_wrap=True, highlight=False)
    console.print(f"fingerprint  = {fingerprint(public)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
