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
    help="Run a site of a federation: agent, keys, privacy ledger, approvals and audit log.",
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
SiteChoice = Annotated[
    Path | None, typer.Option("--site", help="A site.toml, which names all the files below.")
]
LedgerChoice = Annotated[Path | None, typer.Option("--ledger", help="The ledger's database.")]
WitnessChoice = Annotated[
    Path | None, typer.Option("--witness", help="The ledger's witness, a file elsewhere.")
]
IdentityChoice = Annotated[Path | None, typer.Option("--key", help="The site's identity key.")]
PolicyChoice = Annotated[
    Path | None, typer.Option("--policy", help=r"A site.toml with \[policy], or a file of its fields.")
]
SiteFile = Annotated[Path, typer.Option("--site", help="The site's site.toml.", show_default=False)]
PolicyFile = Annotated[
    Path, typer.Option("--policy", help=r"A site.toml with \[policy], or a file of its fields.")
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


@keys.command("secret")
def new_secret(path: KeyFile) -> None:
    """Make the secret that surrogates and date offsets are derived from (file mode 0600)."""
    from client.deidentification_setup import make_site_secret

    make_site_secret(path)
    console.print(
        f"The secret is in {path}. Whoever has it can test guesses about replaced names and undo date shifts: "
        "keep it like a key, and keep it, or surrogates change.",
        soft_wrap=True,
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
    site: SiteChoice = None,
    ledger: LedgerChoice = None,
    witness: WitnessChoice = None,
    key: IdentityChoice = None,
    policy: PolicyChoice = None,
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
    from client.ledger import Ledger
    from client.site_files import ledger_files

    files = ledger_files(site, ledger=ledger, witness=witness, key=key, policy=policy)
    if create:
        Ledger.create(path=files.ledger, witness=files.witness, key=files.key)
    with Ledger(
        path=files.ledger,
        witness=files.witness,
        key=files.key,
        limit=files.policy.limit,
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
    runs = Table("account", "plan", "run", "rounds", "charges", "epsilon, at most", title="By job")
    for job in jobs:
        epsilon = f"{job.epsilon.epsilon:.3f}"
        runs.add_row(job.account, job.plan_hash[:12], job.run_id, str(job.rounds), str(job.charges), epsilon)
    console.print(runs)


@app.command()
def approve(
    plan: Annotated[
        Path | None, typer.Argument(help="The plan, a TOML file; by default the one that --site names.")
    ] = None,
    site: SiteChoice = None,
    roster: Annotated[Path | None, typer.Option("--roster", help="The roster that the plan names.")] = None,
    key: IdentityChoice = None,
    policy: PolicyChoice = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Say in words what a plan would do and cost, who takes part and what changed, and then ask."""
    from client.plan_approval import PlanApproval
    from client.site_files import plan_files

    approval = PlanApproval.of(plan_files(site, plan=plan, roster=roster, key=key, policy=policy))
    for text in approval.texts:
        console.print(text, soft_wrap=True, highlight=False, markup=False)
    if not yes and not typer.confirm("Compare the fingerprints out of band. Approve this plan?"):
        console.print("Nothing was approved.")
        raise typer.Exit(1)
    approval.give()
    console.print(f"Approved plan {approval.facts.plan_hash[:12]}.", highlight=False)


@app.command()
def run(
    site: SiteFile,
    supernode: Annotated[
        str, typer.Option("--supernode", help="`flower` runs flower-supernode; `none` leaves it to you.")
    ] = "flower",
) -> None:
    """Run the site: its agent, and beside it the SuperNode. Ends with Ctrl-C or SIGTERM."""
    from client.run_command import run_site
    from client.settings import read_settings
    from common.validation import require_choice

    settings = read_settings(site)
    raise typer.Exit(
        run_site(settings, supernode=require_choice("--supernode", supernode, ("flower", "none")) == "flower")
    )


@app.command(hidden=True)
def agent(
    site: SiteFile,
    ready_fd: Annotated[int | None, typer.Option(help="A pipe that is told when the agent listens.")] = None,
) -> None:
    """Run the agent alone; `run` starts this, and starts it again when it dies."""
    from client.agent_process import run_agent
    from client.settings import read_settings

    run_agent(read_settings(site), ready=ready_fd)


@app.command()
def declare(
    site: SiteFile,
    create: Annotated[
        bool, typer.Option("--create", help="Begin the ledger too; both its files must be absent.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    r"""Open the account of the population that \[ledger] describes, signed into the privacy ledger."""
    from client.declaration import declare_account, describe_account
    from client.settings import read_settings

    settings = read_settings(site)
    console.print(describe_account(settings), soft_wrap=True, highlight=False, markup=False)
    if not yes and not typer.confirm("Is that so, and shall it be signed with the site's key?"):
        console.print("Nothing was declared.")
        raise typer.Exit(1)
    declare_account(settings, create=create)
    console.print("Declared.", highlight=False)


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="Folder for quality.html and quality.json, mode 0600.")],
    site: Annotated[
        Path | None, typer.Option("--site", help="The site.toml: its data, plan and key.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with train, and devel and test where there are.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="The plan, for its labels and encoder.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="File for what may leave the site: small cells withheld.")
    ] = None,
    release: Annotated[
        bool,
        typer.Option("--release", help="Release the export; asked once more, and signed in the audit log."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", help="Exports of other sites, shown beside.")
    ] = None,
) -> None:
    """Report on the quality of a site's data: a page that stays at the site, and an export that is released."""
    from client.report_command import run_report, source_of

    run_report(
        source_of(site, data, plan),
        out=out,
        export=export,
        release=release,
        confirmed=yes,
        compare=compare or (),
        console=console,
    )


@app.command("deidentify-check")
def deidentify_check(
    data: Annotated[Path, typer.Option("--data", help="Folder with a split whose entities are gold PHI.")],
    plan: Annotated[
        Path, typer.Option("--plan", help="Declares the PHI types and maps the corpus's labels.")
    ],
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go, mode 0600.")],
    site: Annotated[
        Path | None, typer.Option("--site", help=r"A site.toml; its \[deidentification] is checked.")
    ] = None,
    tagger: Annotated[
        Path | None, typer.Option("--tagger", help="Folder of a trained tagger, checked beside the patterns.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, devel or test.")] = "devel",
    language: Annotated[
        list[str] | None, typer.Option("--language", help="en, es or zh; may be given twice.")
    ] = None,
) -> None:
    """Measure recall and precision of de-identification where gold PHI exists: patterns, tagger and both."""
    from client.deidentify_command import run_check
    from common.ingestion import SPLIT_NAMES
    from common.validation import require_choice

    require_choice("--split", split, SPLIT_NAMES)
    run_check(
        data=data,
        plan=plan,
        split=split,
        site=site,
        tagger=tagger,
        languages=tuple(language or ()),
        json_file=json_file,
        console=console,
    )


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(help="A file or folder of records in any format.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder for the prepared notes.", show_default=False)
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", help=r"The site.toml: its plan, and its own \[preparation].")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", help=r"The plan, whose \[preparation] is applied.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show on this terminal what each stage does to a few notes.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first record that cannot be used.")
    ] = False,
    data_format: Annotated[str, typer.Option("--format", help="auto, or a format's name.")] = "auto",
    split: Annotated[
        str, typer.Option("--split", help="Divide into train, devel and test: 0.8,0.1,0.1.")
    ] = "",
    split_key: Annotated[
        Path | None, typer.Option("--split-key", help="The secret key of the division; made if absent.")
    ] = None,
    split_by: Annotated[
        str, typer.Option("--split-by", help="patient, document or record; the largest by default.")
    ] = "",
    workers: Annotated[
        int, typer.Option("--workers", help="Processes; 0 for one a core.", min=0, max=256)
    ] = 0,
    sample: Annotated[int, typer.Option("--sample", help="Notes that --dry-run shows.", min=1)] = 3,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Count word pieces and windows of the plan's encoder.")
    ] = False,
) -> None:
    """Read records in any format, clean them, and write JSONL for training; list what cannot be used."""
    from client.prepare_command import run_prepare

    run_prepare(
        console,
        source,
        out=out,
        site=site,
        plan=plan,
        dry_run=dry_run,
        strict=strict,
        data_format=data_format,
        split=split,
        split_key=split_key,
        split_by=split_by,
        workers=workers,
        sample=sample,
        tokens=tokens,
    )


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
