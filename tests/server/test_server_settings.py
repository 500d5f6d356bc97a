"""`server.toml` and what `up` checks before it starts anything."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from client.enrolment import enrol
from common.errors import InputError, PlanError
from common.plan import Warmup, read_plan
from server.cli import main
from server.deployment import check_settings, require_free_ports, resumed_settings
from server.enrolment import accept_requests
from server.pki import init_pki
from server.settings import read_server_settings

GOOD = '[server]\nlisten = "127.0.0.1:9443"\npki = "."\n[run]\ndata = "data"\nout = "runs/first"\n'


@pytest.fixture
def fed(tmp_path, plan_file, data_folder):
    """A federation's folder that is ready for `up`."""
    folder = tmp_path / "fed"
    init_pki(folder, ["127.0.0.1"])
    for name in ("st-mary", "st-anne"):
        enrol(name=name, server="127.0.0.1:9443", out=tmp_path / name)
    requests = [tmp_path / name / "enrolment.json" for name in ("st-mary", "st-anne")]
    accept_requests(requests, folder, plan=plan_file)
    (folder / "data").symlink_to(data_folder)
    (folder / "server.toml").write_text(GOOD)
    return folder


def test_paths_are_taken_from_the_files_folder(fed):
    settings = read_server_settings(fed / "server.toml")
    assert settings.run.plan == fed / "plan.toml"
    assert settings.run.out == fed / "runs" / "first"
    assert settings.server.state == fed / "state"
    assert settings.server.proxy_address == ("127.0.0.1", 9443)


def test_the_skeleton_is_readable(tmp_path):
    init_pki(tmp_path / "fed", ["h"], port=8443)
    settings = read_server_settings(tmp_path / "fed" / "server.toml")
    assert settings.server.listen == "0.0.0.0:8443"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("listen", "lisen"), "unknown key 'lisen'; did you mean 'listen'"),
        (("127.0.0.1:9443", "localhost:9443"), "server.listen is 'localhost:9443'; it must be an IP address"),
        (("127.0.0.1:9443", "127.0.0.1:0"), "server.listen"),
        (("127.0.0.1:9443", "127.0.0.1"), "server.listen"),
        (("127.0.0.1:9443", "127.0.0.1:9092"), "must be different ports"),
        (('data = "data"\n', ""), "run.data is missing"),
        (("[run]", "[ran]"), "unknown key 'ran'"),
        (('out = "runs/first"', "out = 3"), "run.out is 3"),
        (("[server]", "[server"), "not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(fed, change, message):
    (fed / "server.toml").write_text(GOOD.replace(*change))
    with pytest.raises(PlanError, match=message):
        read_server_settings(fed / "server.toml")


def test_everything_is_checked_before_anything_starts(fed, make_plan):
    settings = read_server_settings(fed / "server.toml")
    plan, roster, keys = check_settings(settings, resume=False)
    assert [member.name for member in roster] == sorted(keys) == ["st-anne", "st-mary"]
    with pytest.raises(InputError, match="is not a run's folder"):
        check_settings(settings, resume=True)
    settings.run.out.mkdir(parents=True)
    (settings.run.out / "plan.toml").write_text(plan.to_toml())
    with pytest.raises(InputError, match="holds a run already; go on with 'fedward-server resume"):
        check_settings(settings, resume=False)
    check_settings(settings, resume=True)
    (settings.run.out / "plan.toml").write_text(make_plan(seed=99).to_toml())
    with pytest.raises(InputError, match="is not the plan of the run in"):
        check_settings(settings, resume=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("synthetic", "only simulations write such notes; write them into a folder"),
        ("/nowhere", "add a file or a folder called train"),
        (".", "give its whole path"),
    ],
)
def test_a_warmup_without_public_notes_is_refused_before_anything_starts(fed, monkeypatch, source, said):
    settings = read_server_settings(fed / "server.toml")
    plan = read_plan(settings.run.plan)
    warm = dataclasses.replace(plan, warmup=Warmup(source=source))
    monkeypatch.setattr("server.deployment.read_plan", lambda path: warm)
    monkeypatch.chdir(settings.run.data)
    (settings.run.data / "train.jsonl").touch()
    with pytest.raises(InputError, match=said):
        check_settings(settings, resume=False)


def test_a_roster_of_another_plan_a_missing_site_and_missing_data(fed, plan_file):
    settings = read_server_settings(fed / "server.toml")
    without = dataclasses.replace(settings, run=dataclasses.replace(settings.run, data=fed / "sites"))
    with pytest.raises(InputError, match="has no split test"):
        check_settings(without, resume=False)
    (fed / "sites" / "st-anne.pub").unlink()
    with pytest.raises(InputError, match="The roster lists st-anne, and .* does not exist"):
        check_settings(settings, resume=False)
    unbound = dataclasses.replace(settings, run=dataclasses.replace(settings.run, plan=plan_file))
    with pytest.raises(PlanError, match="names no roster"):
        check_settings(unbound, resume=False)


@pytest.mark.parametrize("setting", ["server.listen", "server.superlink_port"])
def test_a_port_in_use_is_named(fed, setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = GOOD.replace("9443", str(port)) if setting == "server.listen" else GOOD
        if setting == "server.superlink_port":
            text = text.replace('pki = "."', f'pki = "."\nsuperlink_port = {port}')
        (fed / "server.toml").write_text(text)
        with pytest.raises(
            InputError, match=f"Port {port} of 127.0.0.1 cannot be used .* change {setting} in"
        ):
            require_free_ports(read_server_settings(fed / "server.toml"))


def test_resume_takes_a_folder_or_a_name(fed, tmp_path, monkeypatch):
    settings = read_server_settings(fed / "server.toml")
    other = fed / "runs" / "second"
    other.mkdir(parents=True)
    (other / "plan.toml").touch()
    monkeypatch.chdir(tmp_path)
    for run in (other, other.relative_to(tmp_path)):
        assert resumed_settings(settings, run).run.out == other
    assert resumed_settings(settings, type(other)("second")).run.out == other
    with pytest.raises(InputError, match="is not a run's folder"):
        resumed_settings(settings, type(other)("third"))


@pytest.mark.parametrize("command", ["status", "stop"])
def test_a_server_that_was_never_started(call, fed, command):
    code, _, err = call(main, command, "--config", fed / "server.toml")
    assert (code, "No server was started" in err) == (2, True)


def test_up_ends_with_one_sentence_and_code_2(call, fed):
    (fed / "proxy.key").chmod(0o644)
    code, out, err = call(main, "up", "--config", fed / "server.toml")
    assert (code, out) == (2, "")
    assert "proxy.key can be read by others; run 'chmod 600" in err
    assert "Traceback" not in err
