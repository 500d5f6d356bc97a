"""`fedward-server`: the consortium's side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.command import run_command

app = typer.Typer(
    name="fedward-server",
    help="Coordinate a federation and evaluate its model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

ModelFolder = Annotated[Path, typer.Option("--model", help="A run's model folder.")]


@app.callback()
def _root() -> None:
    """Coordinate a federation and evaluate its model."""


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


def main() -> None:
    """Run the command line."""
    run_command(app)


if __name__ == "__main__":
    main()
