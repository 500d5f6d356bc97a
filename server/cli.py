"""`fedward-server`: the consortium's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.command import run_command
from common.errors import InputError
from common.roster import Member, Roster, parse_identity_key, read_roster, write_roster
from server.cli_pki import enrol, pki
from server.cli_up import resume, status, stop, up
from server.robustness_command import robustness

app = typer.Typer(
    name="fedward-server",
    help="Coordinate a federation and evaluate its model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

ModelFolder = Annotated[Path, typer.Option("--model", help="A run's model folder.")]


roster = typer.Typer(help="Who takes part: names, identity keys and public weights.", no_args_is_help=True)
app.add_typer(roster, name="roster")
app.add_typer(pki, name="pki")
app.add_typer(enrol, name="enrol")
for command in (up, status, resume, stop):
    app.command()(command)

RosterFile = Annotated[Path, typer.Argument(help="The roster, a TOML file.", show_default=False)]


@roster.command("add")
def roster_add(
    path: RosterFile,
    name: Annotated[str, typer.Option("--name", help="The site's name.")],
    identity_key: Annotated[
        str, typer.Option("--key", help="Its public identity key, 64 hexadecimal digits.")
    ],
    public_units: Annotated[
        int, typer.Option("--public-units", help="The public number that its weight is in proportion to.")
    ] = 1,
) -> None:
    """Add a site. The roster's hash is part of the plan hash, so every site approves the new plan anew."""
    member = Member(name=name, identity_key=parse_identity_key(identity_key), public_units=public_units)
    before = read_roster(path) if path.exists() else None
    after = Roster((member,)) if before is None else before.with_member(member)
    write_roster(after, path)
    _show_roster(after)


@roster.command("show")
def roster_show(path: RosterFile) -> None:
    """Print names, weights and fingerprints, to be compared with the sites out of band."""
    _show_roster(read_roster(path))


@app.command()
def evaluate(
    model: ModelFolder,
    data: Annotated[
        Path, typer.Option("--data", help="Folder with the split, in any format that ingestion reads.")
    ],
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go, beside the table.")],
    split: Annotated[str, typer.Option(help="train, devel or test.")] = "test",
    label: Annotated[
        list[str] | None, typer.Option("--map", help="Source label to entity type: SpecificDisease=Disease.")
    ] = None,
) -> None:
    """Score a model on gold notes: strict entities as seqeval counts them, and words by tag, `O` included."""
    if not json_file.parent.is_dir():
        raise InputError(f"{json_file.parent} is not a folder; make it first.")
    from server.console import print_evaluation
    from server.evaluation import evaluate_folder

    result = evaluate_folder(model, data, split=split, label_map=label or ())
    print_evaluation(console, result, title=f"{split} set")
    from common.files import write_atomically

    write_atomically(json_file, json.dumps(result, indent=2) + "\n")


@app.command()
def predict(
    model: ModelFolder,
    text: Annotated[Path, typer.Option("--text", help="A text file, or a folder of .txt files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for spans.jsonl and the BRAT files.")],
) -> None:
    """Find entities in plain text and write them as JSONL and as BRAT standoff."""
    from server.evaluation import predict_folder

    count = predict_folder(model, text, out)
    console.print(
        f"Wrote {count} entities to {out / 'spans.jsonl'} and to BRAT files beside it.", soft_wrap=True
    )


app.command()(robustness)


def _show_roster(members: Roster) -> None:
    """Print a roster and its hash."""
    table = Table("site", "public units", "weight", "fingerprint")
    for member in members:
        weight = f"{members.weight(member.name):.4f}"
        table.add_row(member.name, str(member.public_units), weight, member.fingerprint)
    console.print(table)
    console.print(f"roster_sha256 = {members.digest().hex()}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
