"""`fedward-sim`: many sites on one machine."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.command import run_command
from common.errors import InputError
from common.files import write_atomically
from common.plan import ENGINES, read_plan
from common.validation import require_choice

app = typer.Typer(
    name="fedward-sim",
    help="Simulate a federation of many sites on one machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()

PLANS = Path(__file__).parent / "plans"
BENCHES = {
    "dp-step": "bench_dp_step",
    "secagg": "bench_secagg",
    "scale": "bench_scale",
    "prepare": "bench_prepare",
    "adversarial": "bench_adversarial",
    "deployment": "bench_deployment",
}

PlanFile = Annotated[Path, typer.Argument(help="The plan, a TOML file.", show_default=False)]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder with train, devel (or dev) and test.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field of the plan: rounds=3, privacy.q=0.1.")
]
Fraction = Annotated[
    float, typer.Option("--fraction", help="Share of the training notes to use, chosen by the seed.")
]


@app.command()
def run(
    plan: PlanFile,
    data: DataFolder,
    out: OutFolder,
    overrides: Overrides = None,
    engine: Annotated[str, typer.Option(help="inprocess or ray.")] = "inprocess",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="What goes wrong: drop:site-2@3, slow:site-1@2:5s, fail:site-1@1/upload."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    ledgers: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the sites' privacy ledgers, which then outlive the run.", show_default=False
        ),
    ] = None,
    max_epsilon: Annotated[
        float,
        typer.Option(
            help="What a site may ever spend, set at its first run; 0 lets the plan through once.", min=0
        ),
    ] = 0.0,
    fraction: Fraction = 1.0,
) -> None:
    """Run a federation and leave a run folder with the model, metrics and a report."""
    require_choice("--engine", engine, ENGINES)
    parsed = read_plan(plan, overrides or ())
    from server.console import print_evaluation
    from simulation.engine import read_data, simulate
    from simulation.fraction import take_fraction
    from simulation.watch import RunWatch

    notes = take_fraction(read_data(data, parsed), fraction, seed=parsed.seed)

    with RunWatch.on(console, parsed.federation.rounds) as watch:
        result = simulate(
            parsed,
            notes,
            out,
            resume=resume,
            faults=fault or (),
            watch=watch,
            device=device,
            engine=engine,
            ledgers=ledgers,
            max_epsilon=max_epsilon,
        )
    print_evaluation(console, result["evaluation"], title="Test set")
    _say_result(result, out)


@app.command()
def compare(
    plan: PlanFile,
    data: DataFolder,
    out: OutFolder,
    overrides: Overrides = None,
    seeds: Annotated[
        int, typer.Option(help="How many seeds, counted up from the plan's.", min=1, max=100)
    ] = 1,
    arms: Annotated[str, typer.Option(help="Which of lexicon,central,federated,alone to run.")] = (
        "lexicon,central,federated,alone"
    ),
    fraction: Fraction = 1.0,
) -> None:
    """Hold a federation against central training and against each site alone. What is done already is kept."""
    parsed = read_plan(plan, overrides or ())
    from simulation.baselines import compare as run_comparison
    from simulation.engine import read_data

    table = run_comparison(
        parsed,
        read_data(data, parsed),
        out,
        seeds=[parsed.seed + i for i in range(seeds)],
        arms=[arm.strip() for arm in arms.split(",") if arm.strip()],
        report=lambda line: console.print(line, highlight=False, soft_wrap=True),
        fraction=fraction,
    )
    console.print(_comparison(table))
    console.print(f"The numbers are in {out / 'compare.json'}.", soft_wrap=True)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="One of " + ", ".join(BENCHES) + ".", show_default=False)],
    json_file: Annotated[Path, typer.Option("--json", help="Where the numbers go.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, about a minute; figures are rough.")
    ] = False,
) -> None:
    """Measure one part; ratios are within one run, so that a noisy machine does not matter as much."""
    require_choice("bench", name, BENCHES)
    if not json_file.parent.is_dir():
        raise InputError(f"{json_file.parent} is not a folder; make it first.")
    if quick:
        console.print("Quick: small sizes and few repeats. Do not quote these figures.")
    numbers = importlib.import_module(f"simulation.{BENCHES[name]}").run(quick=quick)
    table = Table("name", "value")
    for key, value in numbers.items():
        table.add_row(key, f"{value:.4g}")
    console.print(table)
    write_atomically(json_file, json.dumps(numbers, indent=2) + "\n")


@app.command()
def synthesize(
    out: OutFolder,
    hospitals: Annotated[int, typer.Option(min=1, max=1000)] = 4,
    notes: Annotated[int, typer.Option(help="Training notes of each hospital.", min=1, max=1_000_000)] = 120,
    seed: Annotated[int, typer.Option(min=0)] = 13,
    language: Annotated[str, typer.Option(help="en, zh or mixed.")] = "en",
) -> None:
    """Write synthetic clinical notes as train, devel and test folders of JSONL."""
    from simulation.synthetic import generate, write_jsonl

    write_jsonl(
        generate(hospital_count=hospitals, notes_per_hospital=notes, seed=seed, language=language), out
    )
    console.print(
        f"Wrote {hospitals * notes} training notes of {hospitals} hospitals to {out}.", soft_wrap=True
    )


@app.command()
def sites(
    plan: PlanFile,
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="A new folder for the sites and the server.")],
    overrides: Overrides = None,
    superlink: Annotated[str, typer.Option(help="Host and port of the SuperLink.")] = "127.0.0.1:8000",
) -> None:
    """Write the folders of a real federation on this machine: records, keys, site.toml, roster and plan."""
    parsed = read_plan(plan, overrides or ())
    from simulation.engine import read_data
    from simulation.sites import write_sites

    roster = write_sites(parsed, read_data(data, parsed), out, superlink=superlink)
    console.print(f"Wrote {len(roster)} sites, the roster and the plan to {out}.", soft_wrap=True)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the run; an earlier demo there is replaced.")
    ] = Path("runs/demo"),
    private: Annotated[
        bool, typer.Option("--private", help="With local differential privacy, after a public warm-up.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Four synthetic hospitals, one model: the quickest way to see everything at work."""
    from server.console import print_evaluation
    from simulation.demo import run_demo

    plan = PLANS / ("demo-private.toml" if private else "demo.toml")
    result = run_demo(read_plan(plan, overrides or ()), out, console)
    print_evaluation(console, result["evaluation"], title="Test set", tokens=False)
    _say_result(result, out)


def main() -> None:
    """Run the command line."""
    run_command(app)


def _say_result(result: dict[str, Any], out: Path) -> None:
    """Say in one line what came out and where it is."""
    score = result["micro_f1"]
    console.print(
        f"Micro F1 {score:.4f} after {result['rounds']} rounds with {result['sites']} sites, "
        f"round {result['chosen_round']} chosen on the development set; {result['seconds']:.0f} s. "
        f"Everything is in {out}; open {out / 'report.html'}.",
        soft_wrap=True,
        highlight=False,
    )
    if result["warmup"] is not None and "test_micro_f1" in result["warmup"]:
        facts = result["warmup"]
        console.print(
            f"Before that, a public warm-up on {facts['notes']} notes ({facts['source']}) alone gave micro F1 "
            f"{facts['test_micro_f1']:.4f}; the federation added {score - facts['test_micro_f1']:+.4f}.",
            soft_wrap=True,
            highlight=False,
        )
    for line in _privacy_lines(result):
        console.print(line, soft_wrap=True, highlight=False)


def _privacy_lines(result: dict[str, Any]) -> list[str]:
    """Say what each site spent, or that nothing bounds what the model may reveal."""
    if not result["privacy"]:
        return ["The run was not private: the model may repeat what it learnt from single records."]
    lines = []
    for site, claim in result["privacy"].items():
        parts = claim["composition"]
        lines.append(
            f"{site}: epsilon {claim['epsilon']:.3f} at delta {claim['delta']:g} ({claim['neighbouring']}, "
            f"{claim['method']}), {parts['steps']} steps at q {parts['q']:g} with noise multiplier "
            f"{parts['noise_multiplier']:g}."
        )
    both = result["privacy_across_sites"]
    if both is not None and len(lines) > 1:
        lines.append(
            f"For somebody with records at every site the bounds add up to epsilon {both['epsilon']:.3f} at delta "
            f"{both['delta']:g}."
        )
    return lines


def _comparison(table: dict[str, Any]) -> Table:
    """Return the comparison as a table, one row an arm."""
    rows = Table("", "micro F1", "spread", "seconds", "per entity", title="Same test set, epochs and seeds")
    arms = ("lexicon", "central", "federated")
    entries: list[tuple[str, dict[str, Any]]] = [(arm, table[arm]) for arm in arms if arm in table]
    entries += [(f"alone: {entry['site']}", entry) for entry in table.get("alone", [])]
    for label, entry in entries:
        per_entity = ", ".join(f"{name} {f1:.4f}" for name, f1 in entry["per_entity"].items())
        rows.add_row(
            label,
            f"{entry['micro_f1']:.4f}",
            f"{entry['micro_f1_spread']:.4f}",
            f"{entry['seconds']:.0f}",
            per_entity,
        )
    if "alone_mean_micro_f1" in table:
        rows.add_row("alone: mean of the sites", f"{table['alone_mean_micro_f1']:.4f}", "", "", "")
    return rows


if __name__ == "__main__":
    main()
