"""`fedward-server robustness`: clean F1 beside F1 on perturbed text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.errors import InputError
from common.files import write_atomically


def robustness(
    model: Annotated[Path, typer.Option("--model", help="A run's model folder.")],
    data: Annotated[
        Path, typer.Option("--data", help="Folder with the split; others in it say what is known.")
    ],
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go, beside the table.")],
    split: Annotated[str, typer.Option(help="train, devel or test.")] = "test",
    label: Annotated[list[str] | None, typer.Option("--map", help="Source label to entity type.")] = None,
    rate: Annotated[float, typer.Option(help="Share of words that are changed.", min=0.0, max=1.0)] = 0.2,
    seeds: Annotated[int, typer.Option(help="How many seeds, counted up.", min=1, max=100)] = 3,
    seed: Annotated[int, typer.Option(help="The first seed.", min=0)] = 13,
    synonyms: Annotated[
        Path | None, typer.Option(help="Public lexicon, word<TAB>synonym lines.", show_default=False)
    ] = None,
    mentions: Annotated[
        Path | None, typer.Option(help="Public lexicon, type<TAB>mention lines.", show_default=False)
    ] = None,
) -> None:
    """Score a model under typos, case, synonyms and unseen mentions, beside the clean text."""
    if not json_file.parent.is_dir():
        raise InputError(f"{json_file.parent} is not a folder; make it first.")
    from server.robustness import RobustnessJob, measure_robustness

    console = Console()
    job = RobustnessJob(
        model=model,
        data=data,
        split=split,
        label_map=tuple(label or ()),
        rate=rate,
        seeds=seeds,
        seed=seed,
        synonyms=synonyms,
        mentions=mentions,
    )
    result = measure_robustness(job, report=lambda line: console.print(line, highlight=False))
    console.print(_table(result))
    if synonyms is None:
        console.print("No synonyms were given (--synonyms), so that row is missing.")
    write_atomically(json_file, json.dumps(result, indent=2) + "\n")


def _table(result: dict[str, Any]) -> Table:
    """Return a row for the clean text and one for each perturbation."""
    table = Table(
        "", "micro F1", "spread", "drop", "notes changed", title=f"{result['settings']['split']} set"
    )
    table.add_row("clean", f"{result['clean']['micro_f1']:.4f}", "", "", "")
    for name, row in result["perturbed"].items():
        values = (row["micro_f1"], row["micro_f1_spread"], row["drop"])
        table.add_row(name, *(f"{value:.4f}" for value in values), f"{row['changed_notes']:.0%}")
    return table
