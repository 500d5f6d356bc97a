"""The folders of a local federation: bound together, private, and readable by the parties they are for."""

import stat
import tomllib
from pathlib import Path

import pytest

from client.opening import open_site
from client.settings import read_settings
from common.errors import InputError
from common.host import schema_of
from common.ingestion import read_split
from common.plan import read_plan
from common.records import EntitySpan, Note
from common.roster import read_roster
from simulation.cli import main
from simulation.sites import write_notes, write_sites


@pytest.fixture
def written(tmp_path, make_plan, make_data):
    write_sites(make_plan(), make_data(), tmp_path / "local")
    return tmp_path / "local"


def test_every_party_has_what_it_needs(written):
    names = [f"site-{n}" for n in (1, 2, 3)]
    assert sorted(entry.name for entry in written.iterdir()) == sorted(
        ["flower", "plan.toml", "roster.toml", "run.toml", "server", *names]
    )
    plan, roster = read_plan(written / "plan.toml"), read_roster(written / "roster.toml")
    roster.require_digest(plan.federation.roster_sha256)
    assert [member.name for member in roster] == names
    assert [member.public_units for member in roster] == [12, 12, 12]
    assert {entry.name for entry in (written / "server" / "data").iterdir()} == {"devel.jsonl", "test.jsonl"}


def test_the_plan_is_the_given_one_but_for_its_roster(written, make_plan):
    plan, given = read_plan(written / "plan.toml").to_table(), make_plan().to_table()
    assert plan["federation"].pop("roster_sha256")
    assert given["federation"].pop("roster_sha256") == ""
    assert plan == given


def test_keys_and_records_are_their_owners_alone(written):
    for path, mode in ((written / "site-1" / "identity.pem", 0o600), (written / "site-1" / "data", 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_sites_notes_are_the_training_notes(written, make_data, make_plan):
    schema = schema_of(make_plan())
    found = []
    for number in (1, 2, 3):
        split = written / f"site-{number}" / "data" / "train.jsonl"
        found += list(read_split(split, schema, split="train"))
    key = lambda note: note.note_id  # noqa: E731
    assert sorted(found, key=key) == sorted(make_data().train, key=key)


def test_notes_come_back_as_they_were(tmp_path, make_plan):
    note = Note(
        note_id="ñ-1",
        text="Gicht \N{WHITE SMILING FACE}\nund gout",
        spans=(EntitySpan(start=12, end=16, label="Disease"),),
        document_id="d",
        patient_id="p",
        columns={"hospital": "north"},
    )
    write_notes(tmp_path / "train.jsonl", [note])
    assert list(read_split(tmp_path / "train.jsonl", schema_of(make_plan()), split="train")) == [note]


def test_a_site_file_opens_the_site(written):
    for number in (1, 2, 3):
        path = written / f"site-{number}" / "site.toml"
        settings = read_settings(path)
        assert settings.site.plan.resolve() == written / "plan.toml"
        with open_site(settings) as site:
            assert site.name == f"site-{number}"
            assert len(site.examples()) >= 12


def test_flower_finds_the_superlink(tmp_path, make_plan, make_data):
    write_sites(make_plan(), make_data(), tmp_path / "a", superlink="127.0.0.1:9876")
    config = tomllib.loads((tmp_path / "a" / "flower" / "config.toml").read_text())
    assert config["superlink"]["fedward"] == {"address": "127.0.0.1:9876", "insecure": True}


def test_the_run_config_names_the_servers_files(written):
    config = tomllib.loads((written / "run.toml").read_text())
    assert set(config) == {"plan", "roster", "data", "out"}
    assert all(
        Path(config[key]).is_absolute() and Path(config[key]).exists() for key in config if key != "out"
    )
    assert not Path(config["out"]).exists()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, make_plan, make_data):
    out = tmp_path / "local"
    out.mkdir()
    (out / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        write_sites(make_plan(), make_data(), out)
    with pytest.raises(InputError):
        write_sites(make_plan(simulation__minimum_examples=1000), make_data(), tmp_path / "other")
    assert [entry.name for entry in tmp_path.iterdir()] == ["local"]


def test_a_failure_on_the_way_leaves_an_empty_folder(monkeypatch, tmp_path, make_plan, make_data):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simulation.sites.write_roster", fail)
    with pytest.raises(OSError, match="No space"):
        write_sites(make_plan(), make_data(), tmp_path / "local")
    assert list((tmp_path / "local").iterdir()) == []


def test_the_command(call, plan_file, data_folder, tmp_path):
    code, out, _ = call(
        main,
        "sites",
        plan_file,
        "--data",
        data_folder,
        "--out",
        tmp_path / "s",
        "--set",
        "simulation.sites=2",
    )
    assert code == 0
    assert "Wrote 2 sites" in out
    assert (tmp_path / "s" / "site-2" / "site.toml").is_file()
