"""`fedward-site prepare`: what it writes, what it lists, and that nothing of a note is where it should not be."""

import io
import json
import tomllib
from collections import Counter

import pytest
import tomli_w
from rich.console import Console

from client.deidentification_settings import DeidentificationTable
from client.preparation_settings import PreparationTable
from client.prepare import PrepareJob, input_bytes, prepare
from client.prepare_command import run_prepare
from client.preprocessing_build import Recipe
from client.preprocessing_pool import PooledPipeline
from client.settings import read_settings
from client.training_notes import read_training_notes
from common.errors import DataError, InputError, PlanError, ValidationError
from common.ingestion import read_dataset
from common.labels import LabelSchema
from common.preparation import require_stages
from common.records import Note
from common.text_files import watching_bytes

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"))
SECRET = "SECRETNAME"
LONG = " ".join(f"day{i} temperature{i % 7} and pulse{i % 5} were taken" for i in range(20))


def line(note_id: str, text: str, **more: object) -> str:
    return json.dumps({"id": note_id, "text": text, "spans": []} | more) + "\n"


@pytest.fixture
def source(tmp_path):
    """A file with good records, copies, and everything that can be wrong with a line."""
    path = tmp_path / "pool.jsonl"
    span = [{"start": 2, "end": 9, "label": "Disease"}]
    content = [
        line("n1", "  ﬁbrosis\r\n\r\n\r\n\r\nseen", spans=span, patient_id="p1"),
        line("n2", LONG, patient_id="p2"),
        line("n3", LONG + " again", patient_id="p3"),
        line("n4", "x", patient_id="p4"),
        f'{{"id": "n5", "text": "{SECRET}\n',
        line("n6", SECRET, spans=[{"start": 0, "end": 99, "label": "Disease"}]),
        line("n7", SECRET, spans=[{"start": 0, "end": 3, "label": "Unheard"}], patient_id="p7"),
        line("n8", f"cough {SECRET[:1]} again today", patient_id="p8"),
    ]
    path.write_bytes("".join(content).encode() + b'{"text": "\xff' + SECRET.encode() + b'"}\n')
    return path


def rejects(out):
    return [json.loads(row) for row in (out / "rejects.jsonl").read_text("utf-8").splitlines()]


def test_notes_are_written_and_what_is_wrong_is_listed_without_text(source, tmp_path, make_plan):
    out = tmp_path / "out"
    plan = make_plan(
        preparation__stages=[
            "unicode",
            "line_breaks",
            "whitespace",
            {"name": "near_duplicates", "within": "site"},
        ]
    )
    result = prepare(PrepareJob(source=source, plan=plan), out)
    data = read_dataset(out, SCHEMA, required=("train",))
    assert [note.note_id for note in data.train] == ["n1", "n2", "n8"]
    first = data.train[0]
    assert (first.text, first.patient_id) == ("fibrosis\n\nseen", "p1")
    assert first.text[first.spans[0].start : first.spans[0].end] == "fibrosis"
    listed = {(row["id"], row["line"], row["reason"]) for row in rejects(out)}
    assert listed == {
        ("n3", None, "near-duplicate"),
        ("n4", None, "too-short"),
        (None, 5, "not-json"),
        ("n6", 6, "bad-span"),
        ("n7", 7, "unknown-label"),
        (None, 9, "not-utf8"),
    }
    kept = (out / "rejects.jsonl").read_text("utf-8") + (out / "preparation.json").read_text("utf-8")
    assert SECRET not in kept
    assert SECRET not in repr(result)
    assert result.stages["unicode"]["ligature"] == 1
    assert result.written == {"train": 3}
    assert sum(result.shares().values()) == pytest.approx(1)
    assert all(path.stat().st_mode & 0o077 == 0 for path in [out, *out.iterdir()])


def test_strict_stops_at_the_first_and_writes_nothing(source, tmp_path, make_plan):
    out = tmp_path / "out"
    with pytest.raises(DataError) as caught:
        prepare(PrepareJob(source=source, plan=make_plan(preparation__stages=["unicode"]), strict=True), out)
    assert SECRET not in str(caught.value)
    assert list(out.iterdir()) == []


def test_a_pool_is_divided_by_patient_and_the_division_is_stable(tmp_path):
    notes = [line(f"n{i}", f"note number {i} of the ward", patient_id=f"p{i // 3}") for i in range(120)]
    source = tmp_path / "pool.jsonl"
    key = tmp_path / "key"
    key.write_text("07" * 32, encoding="utf-8")
    key.chmod(0o600)
    site = PreparationTable(stages=require_stages("s", ["whitespace"]), split_key=key)
    job = PrepareJob(source=source, site=site, fractions=(0.6, 0.2, 0.2))
    where = []
    for count in (60, 120):
        source.write_text("".join(notes[:count]), encoding="utf-8")
        out = tmp_path / f"out{count}"
        result = prepare(job, out)
        assert result.split_by == "patient"
        data = read_dataset(out, SCHEMA, required=("train",))
        where.append({n.note_id: s for s in ("train", "devel", "test") for n in getattr(data, s)})
        patients = [n.patient_id for name in ("train", "devel", "test") for n in getattr(data, name)]
        whole = [{n.patient_id for n in getattr(data, name)} for name in ("train", "devel", "test")]
        assert sum(map(len, whole)) == len(set(patients))
        assert result.balance["train"]["notes"] == len(data.train)
    assert len(where[1]) == 120
    assert where[0].items() <= where[1].items()


def test_a_note_without_patient_is_listed_when_patients_are_divided(tmp_path):
    source = tmp_path / "pool.jsonl"
    source.write_text(line("n1", "one note", patient_id="p1") + line("n2", "other note"), encoding="utf-8")
    site = PreparationTable(split_key=tmp_path / "key")
    prepare(PrepareJob(source=source, site=site, fractions=(1.0, 0.0, 0.0)), tmp_path / "out")
    assert [(r["id"], r["reason"]) for r in rejects(tmp_path / "out")] == [("n2", "no-patient-id")]


def test_splits_that_exist_are_kept_and_not_divided_again(tmp_path, data_folder):
    result = prepare(PrepareJob(source=data_folder), tmp_path / "out")
    assert set(result.written) == {"train", "devel", "test"}
    with pytest.raises(InputError, match="already"):
        prepare(PrepareJob(source=data_folder, fractions=(0.8, 0.1, 0.1)), tmp_path / "again")


def test_an_input_without_a_usable_note_is_an_error_with_the_reasons(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(line("n1", "x"), encoding="utf-8")
    with pytest.raises(DataError, match=r"too-short \(1\)"):
        prepare(PrepareJob(source=source), tmp_path / "out")


def test_a_folder_that_is_not_empty_is_left_alone(source, tmp_path):
    with pytest.raises(InputError, match="not an empty folder"):
        prepare(PrepareJob(source=source), tmp_path)


def test_the_bytes_that_are_read_are_those_that_were_foretold(source):
    read = []
    job = PrepareJob(source=source)
    with watching_bytes(read.append):
        list(job.read("train", source, Counter(), lambda reject: None))
    assert sum(read) == input_bytes(job) == source.stat().st_size


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path):
    notes = [
        Note(note_id=str(i), text=f"  note\u200b{i}  of the ward {i * 7}" if i % 9 else "x")
        for i in range(700)
    ]
    notes += [Note(note_id=f"copy{i}", text=f"note{i} of the ward {i * 7}") for i in range(1, 9)]
    stages = require_stages("s", ["unicode", "whitespace", {"name": "near_duplicates", "within": "site"}])
    results = []
    for workers in (1, 2):
        listed = []
        pipeline = PooledPipeline(
            Recipe(stages=stages), workers=workers, on_reject=lambda *reject, into=listed: into.append(reject)
        )
        kept = list(pipeline.run(notes))
        results.append((kept, sorted(listed), pipeline.counts()))
    assert results[0] == results[1]
    assert len(results[0][1]) > 70


def test_the_dry_run_shows_a_terminal_and_nothing_else(source, tmp_path):
    shown = io.StringIO()
    run_prepare(Console(file=shown, force_terminal=True, width=200), source, out=None, dry_run=True)
    assert "fi" in shown.getvalue()
    assert "unicode" in shown.getvalue()
    assert "Nothing was written" in shown.getvalue()
    piped = io.StringIO()
    with pytest.raises(InputError, match="terminal only"):
        run_prepare(Console(file=piped), source, out=None, dry_run=True)
    assert piped.getvalue() == ""
    assert not (tmp_path / "out").exists()


def test_the_command_prints_counts_and_never_text(source, tmp_path):
    shown = io.StringIO()
    run_prepare(Console(file=shown, width=200), source, out=tmp_path / "out", split="0.8,0.1,0.1", workers=1)
    for said in ("jsonl: The first line", "too-short", "Splits by patient", "notes to", "split key"):
        assert said in shown.getvalue()
    assert SECRET not in shown.getvalue()
    assert (tmp_path / "out.split.key").is_file()


def test_without_out_the_command_says_so(source):
    with pytest.raises(InputError, match="--out is missing"):
        run_prepare(Console(file=io.StringIO()), source, out=None)


def site_file(folder, **preparation):
    table = {
        "site": {"name": "s", "data": "records", "roster": "r.toml", "spool": "spool", "plan": "plan.toml"}
    }
    table |= {"keys": {"identity": "identity.pem"}, "preparation": preparation}
    path = folder / "site.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def test_a_site_adds_its_own(tmp_path, make_plan):
    (tmp_path / "phrases.txt").write_text("Printed on ward\n", encoding="utf-8")
    path = site_file(tmp_path, phrases=["Signed by"], phrases_file="phrases.txt", text_column="NOTE")
    preparation = read_settings(path).preparation
    assert preparation.phrases_file == tmp_path / "phrases.txt"
    assert preparation.table.text == "NOTE"
    recipe = preparation.recipe(make_plan(preparation__stages=["unicode"]))
    assert [choice.name for choice in recipe.choices] == ["unicode", "boilerplate", "length"]
    assert recipe.phrases == ("Signed by", "Printed on ward")


@pytest.mark.parametrize(
    ("preparation", "said"),
    [({"stage": []}, "unknown key"), ({"format": "bio"}, "format"), ({"stages": ["x"]}, "stages")],
)
def test_a_site_file_says_what_is_wrong_with_its_preparation(tmp_path, preparation, said):
    with pytest.raises(PlanError, match=said):
        read_settings(site_file(tmp_path, **preparation))


def test_the_main_job_trains_on_prepared_notes(tmp_path, make_plan):
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "train.jsonl").write_text(line("n1", "  a\u200bb  gout ") + line("n2", "x"), encoding="utf-8")
    plan = make_plan(preparation__stages=["unicode", "whitespace"])
    assert [n.text for n in read_training_notes(folder, plan)] == ["a b gout"]
    assert [n.note_id for n in read_training_notes(folder, make_plan())] == ["n1", "n2"]


def test_the_main_job_refuses_a_sites_stage_across_units_under_privacy(tmp_path, make_plan):
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "train.jsonl").write_text(line("n1", "gout"), encoding="utf-8")
    plan = make_plan(privacy__noise_multiplier=1.0, privacy__steps=4, training__physical_tokens=64)
    across = PreparationTable(stages=require_stages("s", [{"name": "near_duplicates", "within": "site"}]))
    with pytest.raises(ValidationError, match="one privacy unit"):
        read_training_notes(folder, plan, across)


def test_the_main_job_deidentifies_where_the_site_says_how(tmp_path, make_plan):
    folder = tmp_path / "records"
    folder.mkdir()
    text = "Call 555-201-3344 or jane.roe@example.org about gout."
    span = {"start": text.index("gout"), "end": text.index("gout") + 4, "label": "Disease"}
    (folder / "train.jsonl").write_text(line("n1", text, spans=[span]), encoding="utf-8")
    asked = make_plan(preparation__stages=["whitespace", "deidentify"])
    with pytest.raises(ValidationError, match=r"\[deidentification\]"):
        read_training_notes(folder, asked)
    for plan in (asked, make_plan()):
        (note,) = read_training_notes(folder, plan, deidentification=DeidentificationTable(mode="tag"))
        assert "jane.roe" not in note.text
        assert note.text[note.spans[0].start : note.spans[0].end] == "gout"


def test_the_main_job_refuses_notes_that_nobody_annotated(tmp_path, make_plan):
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "train.csv").write_text("id,text\nn1,gout\n", encoding="utf-8")
    with pytest.raises(DataError, match="nobody has annotated"):
        read_training_notes(folder, make_plan())


def test_the_shipped_example_of_a_site_file_is_valid():
    from client import preparation_settings

    example = preparation_settings.__doc__.split("```toml")[1].split("```")[0]
    PreparationTable.from_table(tomllib.loads(example)["preparation"])
