"""A site's own file: what it must say, and what it may not."""

import tomllib
from pathlib import Path

import pytest
import tomli_w

from client.settings import read_settings
from common.errors import PlanError

LEDGER = {
    "path": "ledger/ledger.db",
    "witness": "witness/head.json",
    "account": "wards",
    "unit": "patient",
    "delta": 1e-5,
    "declaration": "All patients of 2026.",
}


@pytest.fixture
def site(tmp_path):
    """A site.toml; nothing that it names is there."""
    path = tmp_path / "site.toml"
    names = {"name": "st-mary", "data": "records", "roster": "r.toml", "spool": "spool", "plan": "p.toml"}
    path.write_text(tomli_w.dumps({"site": names, "keys": {"identity": "identity.pem"}}), encoding="utf-8")
    return path


def change(file: Path, section: str, **values: object) -> None:
    """Set keys of a table of the file; None removes one."""
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    changed = table.get(section, {}) | values
    table[section] = {key: value for key, value in changed.items() if value is not None}
    file.write_text(tomli_w.dumps(table), encoding="utf-8")


def test_paths_are_taken_from_the_files_folder(site):
    found = read_settings(site)
    assert found.site.data == site.parent / "records"
    assert found.keys.identity == site.parent / "identity.pem"
    assert found.policy is None
    assert found.ledger is None
    assert found.server is None
    assert found.agent.socket == site.parent / "run" / "agent.sock"


def test_every_table_is_read(site):
    change(site, "ledger", **LEDGER)
    change(site, "agent", log="agent.log", supernode_user="", metrics_port=9100)
    change(site, "server", address="federation.example:8443", ca="ca.pem", supernode_key="", flwr_home="f")
    found = read_settings(site)
    assert found.ledger.to_account().name == "wards"
    assert found.ledger.witness == site.parent / "witness" / "head.json"
    assert (found.agent.log, found.agent.metrics_port) == (site.parent / "agent.log", 9100)
    assert (found.server.ca, found.server.supernode_key) == (site.parent / "ca.pem", None)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("site", {"rooster": "r.toml"}, "'rooster'; did you mean 'roster'"),
        ("site", {"spool": None}, "site.spool is missing"),
        ("site", {"name": 7}, "site.name is 7"),
        ("site", {"data": ""}, "site.data is ''"),
        ("keys", {"identity": None}, "keys.identity is missing"),
        ("keys", {"identiti": "x"}, "did you mean 'identity'"),
        ("key", {}, "unknown key 'key'; did you mean 'keys'"),
        ("policy", {"max_epsilon": 1.0}, "max_delta is missing"),
        ("site", {"plan": None}, "site.plan is missing"),
        ("ledger", {"path": "l.db"}, "ledger.witness is missing"),
        ("ledger", LEDGER | {"unit": "person"}, "ledger.unit is 'person'"),
        ("ledger", LEDGER | {"delta": 2.0}, "delta"),
        ("ledger", LEDGER | {"disjoint_from": "wards"}, "it must be a list of texts"),
        ("agent", {"sockett": "x"}, "'sockett'; did you mean 'socket'"),
        ("agent", {"metrics_port": 70000}, "agent.metrics_port is 70000"),
        ("agent", {"stop_seconds": -1}, "agent.stop_seconds is -1"),
        ("server", {"ca": "ca.pem"}, "server.address is missing"),
        ("server", {"address": "host"}, "it must be host:port"),
        ("server", {"address": "host:99999"}, "it must be host:port"),
    ],
)
def test_errors_name_file_and_field(site, section, values, said):
    change(site, section, **values)
    with pytest.raises(PlanError) as caught:
        read_settings(site)
    assert str(site) in str(caught.value)
    assert said in str(caught.value)


def test_missing_file_and_bad_toml(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "site.toml").write_text("[site", encoding="utf-8")
    with pytest.raises(PlanError, match="not valid TOML"):
        read_settings(tmp_path / "site.toml")
