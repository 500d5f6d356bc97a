"""The main job with secure aggregation: agreement with the plain sum, dropouts, kills, retries, lost rounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.audit_log import verify
from common.errors import AbortError, PlanError, RoundError
from common.secure_plan import check_secure_plan, ring_layout
from server.checkpoint import CheckpointStore
from simulation.engine import federate, simulate

SECURE = {
    "secure_aggregation__enabled": True,
    "federation__minimum_cohort": 2,
    "secure_aggregation__clip": 4.0,
    "simulation__sites": 5,
}


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]


def weights(out: Path) -> np.ndarray:
    checkpoint = CheckpointStore(out / "checkpoints").latest()
    assert checkpoint is not None
    return checkpoint.weights


@pytest.fixture
def run(make_plan: Callable[..., Any], make_data: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    def go(name: str, faults: tuple[str, ...] = (), **changes: Any) -> Path:
        simulate(make_plan(**{**SECURE, **changes}), make_data(), tmp_path / name, faults=faults)
        return tmp_path / name

    return go


def test_the_secure_sum_is_the_plain_sum_within_the_quantisation_bound(
    run: Callable[..., Path], make_plan: Callable[..., Any], make_data: Callable[..., Any]
) -> None:
    plain = weights(run("plain", secure_aggregation__enabled=False, federation__rounds=1))
    out = run("secure", federation__rounds=1)
    plan = make_plan(**SECURE)
    federation = federate(plan, make_data().train)
    layout = ring_layout(plan, parameters=len(plain), sites=5)
    bound = layout.mean_largest_error("delta", list(federation.roster.weights().values()))
    # The layout does not weight the delta (a stage has), so its mean divides by 5; ours by the weights' sum.
    bound *= 5 / sum(federation.roster.weights().values())
    difference = np.abs(weights(out) - plain).max()
    assert 0 < difference <= bound + 1e-6
    assert rows(out)[0]["num_clipped"] == 0


def test_the_statistics_that_ride_in_the_vector_are_exact(run: Callable[..., Path]) -> None:
    (plain,), (secure,) = (
        rows(run("plain", secure_aggregation__enabled=False, federation__rounds=1)),
        rows(run("secure", federation__rounds=1)),
    )
    assert secure["num_examples"] == plain["num_examples"] == 36
    assert secure["num_tokens"] == plain["num_tokens"]
    assert secure["train_loss"] == pytest.approx(plain["train_loss"], abs=1e-3)


@pytest.mark.parametrize("stage", ["train", "share_keys", "upload"])
@pytest.mark.parametrize("kind", ["drop", "crash"])
def test_a_site_lost_before_confirm_is_not_in_the_sum(
    run: Callable[..., Path], stage: str, kind: str
) -> None:
    out = run("dropped", (f"{kind}:site-2@1/{stage}",))
    assert [row["sites"] for row in rows(out)] == [
        ["site-1", "site-3", "site-4", "site-5"],
        ["site-1", "site-2", "site-3", "site-4", "site-5"],
    ]


@pytest.mark.parametrize("stage", ["confirm", "unmask"])
def test_a_site_lost_after_its_upload_is_in_the_sum(run: Callable[..., Path], stage: str) -> None:
    out = run("late", (f"crash:site-2@1/{stage}",))
    whole = run("whole")
    assert rows(out)[0]["sites"] == rows(whole)[0]["sites"]
    assert rows(out)[0]["num_examples"] == rows(whole)[0]["num_examples"]


def test_a_failed_attempt_is_retried_without_training_again(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.site import Site
    from client.trainer import LocalTrainer

    trained: list[tuple[str, int]] = []
    train = LocalTrainer.train

    def counted(self: LocalTrainer, examples: Any, *, site: str, server_round: int, **options: Any) -> Any:
        trained.append((site, server_round))
        return train(self, examples, site=site, server_round=server_round, **options)

    monkeypatch.setattr(LocalTrainer, "train", counted)
    share_keys, failed = Site._share_keys, set[str]()

    def failing_once(self: Site, request: Any) -> Any:
        # Three of five fail once, so the first attempt has too few sites and the second has all.
        if self.name in ("site-1", "site-2", "site-3") and self.name not in failed:
            failed.add(self.name)
            raise AbortError("A planted failure.")
        return share_keys(self, request)

    monkeypatch.setattr(Site, "_share_keys", failing_once)
    first, second = rows(run("retried"))
    assert (first["attempts"], second["attempts"]) == (2, 1)
    assert len(first["sites"]) == 5
    assert sorted(trained) == sorted((f"site-{i}", r) for i in range(1, 6) for r in (1, 2))


def test_a_sum_that_is_lost_after_confirm_costs_the_round_and_no_more(run: Callable[..., Path]) -> None:
    faults = tuple(f"drop:site-{i}@1/confirm" for i in (1, 2, 3))
    out = run("lost", faults)
    first, second = rows(out)
    assert first["lost"] is True
    assert first["sites"] == []
    assert len(second["sites"]) == 5


def test_two_lost_rounds_in_a_row_stop_the_run_with_a_word_on_resuming(run: Callable[..., Path]) -> None:
    faults = tuple(f"drop:site-{i}@{r}/confirm" for i in (1, 2, 3) for r in (1, 2))
    with pytest.raises(RoundError, match="resume"):
        run("stopped", faults)


def test_a_run_that_stopped_after_two_lost_rounds_goes_on_with_the_next(
    run: Callable[..., Path], make_plan: Callable[..., Any], make_data: Callable[..., Any], tmp_path: Path
) -> None:
    changes = {"federation__rounds": 4}
    faults = tuple(f"fail:site-{i}@{r}/share_keys" for i in (1, 2, 3) for r in (1, 2))
    # All attempts of both rounds are used up, so neither can be tried again.
    with pytest.raises(RoundError, match="resume"):
        run("stopped", faults, **changes)
    simulate(make_plan(**{**SECURE, **changes}), make_data(), tmp_path / "stopped", resume=True)
    done = rows(tmp_path / "stopped")
    assert [bool(row.get("lost")) for row in done] == [True, True, False, False]


def test_a_cohort_that_tolerates_no_one_is_refused_before_anything_runs(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="too small"):
        run("small", simulation__sites=2)
    assert not (tmp_path / "small" / "metrics.jsonl").exists()


def test_a_plan_whose_sum_could_wrap_is_refused(
    make_plan: Callable[..., Any], make_data: Callable[..., Any]
) -> None:
    plan = make_plan(**{**SECURE, "secure_aggregation__bits": 32})
    federation = federate(plan, make_data().train)
    with pytest.raises(PlanError, match=r"secure_aggregation\.bits"):
        check_secure_plan(plan, federation.roster, parameters=10)


def test_a_second_run_of_the_same_plan_is_refused_by_the_sites(
    make_plan: Callable[..., Any], make_data: Callable[..., Any], make_site: Callable[..., Any]
) -> None:
    site = make_site(make_plan(**SECURE), make_data())
    first = site.ask_to_train(run_id="aaaa", attempt=1)
    assert first.refusal is None
    assert site.ask_to_train(run_id="bbbb", attempt=1).refusal == "refused-protocol"
    assert site.ask_to_train(run_id="aaaa", attempt=2).refusal is None


def test_another_model_than_its_hash_says_is_refused(
    make_plan: Callable[..., Any], make_data: Callable[..., Any], make_site: Callable[..., Any]
) -> None:
    site = make_site(make_plan(**SECURE), make_data())
    assert site.ask_to_train(run_id="aaaa", attempt=1, model_hash="0" * 64).refusal == "refused-protocol"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"attempt": 1}, "refused-protocol"),  # the same attempt again: its keys would be reused
        ({"run_id": "bbbb"}, "refused-protocol"),
        ({"model_hash": "0" * 64}, "refused-protocol"),
        ({"plan_hash": "0" * 64}, "refused"),
    ],
    ids=["attempt again", "another run", "another model", "another plan"],
)
def test_every_refusal_stands_in_the_audit_log_once_and_without_its_reason(
    make_plan: Callable[..., Any],
    make_data: Callable[..., Any],
    make_site: Callable[..., Any],
    change: dict[str, Any],
    code: str,
) -> None:
    site = make_site(make_plan(**SECURE), make_data())
    assert site.ask_to_train(run_id="aaaa", attempt=1).refusal is None
    assert site.ask_to_train(**{"run_id": "aaaa", "attempt": 2, **change}).refusal == code
    entries = verify(site.folder / "audit.jsonl")
    refusals = [dict(entry.values) for entry in entries if entry.kind == "refusal"]
    attempt = change.get("attempt", 2)
    assert refusals == [{"server_round": 1, "attempt": attempt, "stage": "train", "code": code}]


KILLED = """
import os, signal, sys
from pathlib import Path
from common.ingestion import read_dataset
from common.plan import read_plan
from simulation.engine import read_data, simulate
from client.site import Site
stage, out = sys.argv[3], Path(sys.argv[4])
name = {"train": "_begin_attempt", "share_keys": "_share_keys", "upload": "_masked_upload",
        "confirm": "_confirm", "unmask": "_unmask"}[stage]
method, calls = getattr(Site, name), []
def killed(self, *arguments):
    calls.append(1)
    answer = method(self, *arguments)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
setattr(Site, name, killed)
plan = read_plan(Path(sys.argv[1]))
simulate(plan, read_data(Path(sys.argv[2]), plan), out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "share_keys", "upload", "confirm", "unmask"])
def test_a_run_killed_in_any_stage_resumes_and_reuses_no_attempt(
    stage: str, make_plan: Callable[..., Any], data_folder: Path, tmp_path: Path
) -> None:
    from common.plan import read_plan
    from simulation.engine import read_data

    path, out = tmp_path / "plan.toml", tmp_path / "run"
    path.write_text(make_plan(**{**SECURE, "federation__rounds": 3}).to_toml(), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(data_folder), stage, str(out)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    plan = read_plan(path)
    simulate(plan, read_data(data_folder, plan), out, resume=True)
    done = rows(out)
    assert [row["round"] for row in done] == [1, 2, 3]
    # Before confirm the round is tried again under a new number; after it, it is lost and not repeated.
    if stage in ("confirm", "unmask"):
        assert done[0].get("lost") is True
    else:
        assert done[0]["attempts"] == 2
    assert len(done[2]["sites"]) == 5


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam", "fedyogi"])
def test_every_server_optimizer_takes_the_opened_mean(run: Callable[..., Path], optimizer: str) -> None:
    changes = {"federation__optimizer": optimizer, "federation__server_learning_rate": 0.01}
    plain = weights(run("plain", secure_aggregation__enabled=False, federation__rounds=1, **changes))
    secure = weights(run("secure", federation__rounds=1, **changes))
    # An adaptive step divides by the root of a small square, which stretches the quantisation error.
    assert np.abs(secure - plain).max() < 0.011
    assert np.mean(np.abs(secure - plain)) < 1e-3


def test_lora_adapters_and_partly_trained_models_are_summed_alone(run: Callable[..., Path]) -> None:
    whole = weights(run("whole", federation__rounds=1))
    adapters = weights(run("lora", federation__rounds=1, model__lora_rank=2))
    top = weights(run("top", federation__rounds=1, model__trained_layers=1, model__freeze_embeddings=True))
    assert len(adapters) < len(top) < len(whole)
    assert len(rows(run("again", model__lora_rank=2))) == 2
