"""A run's folder is begun whole, locked, rewound exactly, and holds no text of notes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError
from server.run_folder import RunFolder, plain_metrics

ROOT = Path(__file__).resolve().parents[2]
PLAN = "[federation]\nrounds = 3\n"


def begin(path: Path, rounds: int = 0) -> RunFolder:
    folder = RunFolder.create(path, PLAN)
    for number in range(1, rounds + 1):
        folder.append_metrics({"round": number, "train_loss": 1 / number})
    return folder


def rounds_of(folder: RunFolder) -> list[int]:
    return [row["round"] for row in folder.read_metrics()]


def test_a_new_run_has_its_plan_and_rooms(tmp_path):
    with begin(tmp_path / "runs" / "demo") as folder:
        assert folder.plan_text() == PLAN
        assert folder.name == "demo"
        assert folder.checkpoints_path.is_dir()
        assert folder.tensorboard_path.is_dir()
        assert folder.read_metrics() == []


def test_a_run_is_not_begun_over_another(tmp_path):
    begin(tmp_path, 2).close()
    with pytest.raises(InputError, match="holds a run already; resume it with --resume"):
        RunFolder.create(tmp_path, PLAN)
    with RunFolder.open(tmp_path) as folder:
        assert rounds_of(folder) == [1, 2]


def test_replace_removes_the_earlier_run_and_nothing_else(tmp_path):
    with begin(tmp_path, 2) as folder:
        folder.model_path.mkdir()
        (folder.model_path / "config.json").write_text("{}")
        (tmp_path / "notes-of-mine.txt").write_text("keep")
    with RunFolder.create(tmp_path, "seed = 2\n", replace=True) as folder:
        assert folder.plan_text() == "seed = 2\n"
        assert folder.read_metrics() == []
        assert not folder.model_path.exists()
        assert (tmp_path / "notes-of-mine.txt").read_text() == "keep"


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_other_files_is_refused_and_untouched(tmp_path, replace):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not a run's folder"):
        RunFolder.create(tmp_path, PLAN, replace=replace)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        RunFolder.create(tmp_path / "out", PLAN)


def test_what_a_killed_creation_left_is_no_obstacle(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".plan.toml.123.part").write_text("[fed")
    with begin(tmp_path) as folder:
        assert folder.plan_text() == PLAN
        assert not list(tmp_path.glob("*.part"))


def test_a_folder_without_a_plan_is_not_opened(tmp_path):
    with pytest.raises(InputError, match=r"no plan\.toml"):
        RunFolder.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


HOLDER = """
import sys
from server.run_folder import RunFolder
folder = RunFolder.open(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_write_one_run(tmp_path):
    begin(tmp_path).close()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="Another process is at work"):
            RunFolder.open(tmp_path)
        process.kill()
        process.wait()
    RunFolder.open(tmp_path).close()


def test_rewinding_drops_the_rounds_after_the_checkpoint(tmp_path):
    with begin(tmp_path, 5) as folder:
        folder.rewind(3)
        assert rounds_of(folder) == [1, 2, 3]
        folder.append_metrics({"round": 4})
        assert rounds_of(folder) == [1, 2, 3, 4]


def test_rewinding_fills_in_what_was_checkpointed_but_not_logged(tmp_path):
    with begin(tmp_path, 2) as folder:
        folder.rewind(3, [{"round": 3, "train_loss": 0.5}])
        assert rounds_of(folder) == [1, 2, 3]
        assert folder.read_metrics()[-1] == {"round": 3, "train_loss": 0.5}


def test_a_line_torn_by_a_crash_is_dropped(tmp_path):
    with begin(tmp_path, 2) as folder:
        with folder.metrics_path.open("ab") as file:
            file.write(b'{"round": 3, "train_l')
        assert rounds_of(folder) == [1, 2]
        folder.rewind(2)
        folder.append_metrics({"round": 3})
        assert rounds_of(folder) == [1, 2, 3]


def test_result_is_strict_json(tmp_path):
    with begin(tmp_path) as folder:
        folder.write_result({"micro_f1": np.float32(0.5), "epsilon": float("inf"), "sites": np.int64(4)})
        text = folder.result_path.read_text()
    assert json.loads(text) == {"micro_f1": 0.5, "epsilon": None, "sites": 4}
    assert "Infinity" not in text


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path):
    with begin(tmp_path) as folder:
        folder.write_result({"sites": 4})
        with pytest.raises(ValueError, match="object cannot be part"):
            folder.write_result({"sites": object()})
        assert json.loads(folder.result_path.read_text()) == {"sites": 4}


def test_numbers_of_numpy_and_not_finite_ones_become_json():
    row = {"round": 1, "loss": float("nan"), "f1": np.float64(0.5), "n": np.int32(3), "sites": ("a", "b")}
    assert plain_metrics(row) == {"round": 1, "loss": None, "f1": 0.5, "n": 3, "sites": ["a", "b"]}


@pytest.mark.parametrize(
    "row",
    [
        {"round": 1, "worst": "Patient Müller was admitted with dyspnoea."},
        {"round": 1, "devel": {"errors": ["metformin 500 mg"]}},
        {"round": 1, "devel": {"the patient denies pain": 3}},
        {"round": 1, "word": "患者因胸痛入院"},
        {"round": 1, "word": "x" * 81},
    ],
)
def test_text_of_a_note_cannot_become_a_metric(tmp_path, row):
    with begin(tmp_path) as folder:
        with pytest.raises(ValueError, match="is not a word") as caught:
            folder.append_metrics(row)
        assert folder.read_metrics() == []
    for secret in ("ller", "metformin", "denies", "患者", "xxx"):
        assert secret not in str(caught.value)


def test_labels_in_any_script_are_keys():
    row = {"round": 1, "devel": {"per_entity": {"疾病": {"f1": 0.5}, "Anatomía": {"f1": 0.25}}}}
    assert plain_metrics(row) == row


def test_a_row_needs_its_round():
    with pytest.raises(ValueError, match="`round`"):
        plain_metrics({"train_loss": 0.5})
