"""`fedward-sim bench deployment`: what the whole path costs, with every process a real one on this machine.

A server behind its TLS proxy, sites with an agent and a SuperNode each, SuperNode authentication and secure
aggregation. Twice: a trivial model with local privacy, whose stages show what an exchange costs beyond any
work; and a model of 110 million random weights, for the bytes on the wire and each process's peak memory.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import FedwardError
from common.ingestion import Dataset
from common.plan import Plan
from server.run_folder import read_metrics
from simulation.byte_relay import ByteRelay
from simulation.local_federation import LocalFederation, free_ports, write_federation
from simulation.local_processes import end_process, start_process
from simulation.process_watch import ProcessWatch
from simulation.synthetic import generate
from simulation.synthetic_lexicon import LABELS

_MIB = 2**20
_LIMIT_SECONDS = 3600.0
_FAREWELL_SECONDS = 60.0

_TRIVIAL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
_BASE: Mapping[str, int] = {}
"""The shapes: one that trains in no time, and BERT-base, which is transformers' default."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run of a federation cost.

    Attributes:
        rows: The rounds' metrics.
        values: Numbers in the model.
        sent: Bytes from all sites to the proxy.
        received: Bytes from the proxy to all sites.
        peaks: Peak memory in bytes by role.
        started: Processes of each role.
    """

    rows: list[dict[str, Any]]
    values: int
    sent: int
    received: int
    peaks: Mapping[str, int]
    started: Mapping[str, int]


def run(quick: bool) -> dict[str, float]:
    """Return the figures by name.

    Args:
        quick: The trivial model alone, with three sites and two rounds.
    """
    trivial = _trivial(sites=3, rounds=2) if quick else _trivial(sites=4, rounds=4)
    figures = _exchanges(trivial)
    return figures if quick else figures | _large(_base(sites=3), floor=trivial.peaks["agent"])


def _trivial(*, sites: int, rounds: int) -> Measured:
    """Run rounds with a trivial model, local privacy on."""
    privacy = {"unit": "record", "q": 0.5, "steps": rounds, "noise_multiplier": 1.0}
    return _measure(_TRIVIAL, notes=8, sites=sites, federation={"rounds": rounds}, privacy=privacy)


def _base(*, sites: int) -> Measured:
    """Send a model of BERT-base's shape through one round of one training step."""
    return _measure(
        _BASE, notes=4, sites=sites, federation={"rounds": 1, "local_epochs": 0, "local_steps": 1}
    )


def _exchanges(measured: Measured) -> dict[str, float]:
    """Return what the stages took in the median. The first round, in which everything warms up, is left out."""
    rows = measured.rows[1:]
    stages = {
        stage: statistics.median(row["seconds_by_stage"][stage] for row in rows)
        for stage in rows[0]["seconds_by_stage"]
    }
    exchanges = [seconds for stage, seconds in stages.items() if stage != "evaluate"]
    return {
        **{f"exchange.{stage}_seconds": seconds for stage, seconds in stages.items()},
        "exchange.mean_seconds": statistics.fmean(exchanges),
        "exchange.largest_seconds": max(exchanges),
        "exchange.round_seconds": statistics.median(row["seconds"] for row in rows),
        "exchange.rounds": float(len(rows)),
        **{f"exchange.{role}_peak_mib": peak / _MIB for role, peak in sorted(measured.peaks.items())},
        "exchange.agents_started": float(measured.started["agent"]),
        "exchange.clientapps_seen": float(measured.started.get("clientapp", 0)),
    }


def _large(measured: Measured, *, floor: int) -> dict[str, float]:
    """Return what the large model cost; `floor` is what an agent takes with a model of no size, in bytes."""
    (row,) = measured.rows
    model, sites = 4.0 * measured.values, len(row["sites"])
    return {
        "large.million_values": measured.values / 1e6,
        "large.site_sends_to_float32": measured.sent / sites / model,
        "large.site_receives_to_float32": measured.received / sites / model,
        **{f"large.{stage}_seconds": seconds for stage, seconds in row["seconds_by_stage"].items()},
        **{f"large.{role}_peak_mib": peak / _MIB for role, peak in sorted(measured.peaks.items())},
        "large.agent_beyond_trivial_to_float32": (measured.peaks["agent"] - floor) / model,
    }


def _measure(
    shape: Mapping[str, int], *, notes: int, sites: int, federation: Mapping[str, Any], **sections: Any
) -> Measured:
    """Run a federation of real processes with a random encoder of a shape, from enrolment to the run's end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = _write_encoder(folder / "encoder", shape)
        plan = Plan.from_table(
            {
                "task": {"entity_types": list(LABELS)},
                "model": {"encoder": str(folder / "encoder"), "max_tokens": 128, "stride": 32},
                "federation": {"minimum_cohort": sites, **federation},
                "simulation": {"sites": sites, "partition": "column", "column": "hospital"},
                **sections,
            }
        )
        corpus = generate(hospital_count=sites, notes_per_hospital=notes, seed=3, devel_notes=2, test_notes=2)
        data = Dataset(train=corpus.all_train, devel=corpus.devel, test=corpus.test)
        (port,) = free_ports(1)
        with ByteRelay(port) as relay, ProcessWatch(folder) as watch:
            fed = write_federation(plan, data, folder / "f", port=port, through=relay.port)
            _run(fed)
            return Measured(
                rows=list(read_metrics(fed.out)),
                values=values,
                sent=relay.sent,
                received=relay.received,
                peaks=watch.peaks,
                started=watch.started,
            )


def _write_encoder(folder: Path, shape: Mapping[str, int]) -> int:
    """Write a random BERT with the embedded encoder's tokenizer; return how many numbers it has."""
    from transformers import AutoTokenizer, BertConfig, BertModel
    from transformers.utils.logging import disable_progress_bar

    from common.model import EMBEDDED_ENCODER, encoder_source

    tokenizer = AutoTokenizer.from_pretrained(encoder_source(EMBEDDED_ENCODER), local_files_only=True)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    config = BertConfig.from_dict({"vocab_size": len(tokenizer), **shape})
    model = BertModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _run(fed: LocalFederation) -> None:
    """Start the server and the sites, wait for the run's end, and end everything.

    Raises:
        FedwardError: The run did not complete; the end of what the server said is in the sentence.
    """
    log = fed.server / "up.log"
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(_process(log, "server.cli", "up", "--config", str(fed.config)))
        for site in fed.sites:
            command = ("client.cli", "run", "--site", str(site / "site.toml"))
            stack.enter_context(_process(site / "run.log", *command))
        try:
            code = up.wait(timeout=_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
    if code != 0:
        raise FedwardError(
            f"The measured run did not complete. The server said: {log.read_text('utf-8')[-500:]}"
        )


@contextlib.contextmanager
def _process(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module of ours while the block lasts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_HOME": str(log.parent / "flwr")}
    command = [sys.executable, "-m", *arguments]
    process = start_process(command, log=log, folder=log.parent, environment=environment)
    try:
        yield process
    finally:
        end_process(process, seconds=_FAREWELL_SECONDS)
