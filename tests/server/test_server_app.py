"""The ServerApp: what its run-config must say, and that it runs the federation it is given."""

import contextlib

import pytest
from flwr.app import Context, RecordDict

from client.app import make_client_app
from common.errors import DataError, InputError, PlanError
from server.app import configured_job, make_server_app
from server.federation import FederationJob, open_run
from server.watch import ConsoleWatch
from simulation.engine import federate, site_makers
from simulation.grid import InProcessGrid
from simulation.sites import write_notes, write_sites


def context(**run_config: object) -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))


@pytest.fixture
def local(tmp_path, make_plan, make_data):
    """A local federation's folder and the run-config for it."""
    write_sites(make_plan(federation__rounds=1), make_data(), tmp_path / "local")
    folder = tmp_path / "local"
    config = {
        "plan": str(folder / "plan.toml"),
        "roster": str(folder / "roster.toml"),
        "data": str(folder / "server" / "data"),
        "out": str(tmp_path / "run"),
        "resume": False,
    }
    return folder, config


@pytest.mark.parametrize("key", ["plan", "roster", "data", "out"])
def test_a_missing_key_is_named(local, tmp_path, key):
    _, config = local
    with (
        pytest.raises(InputError, match=f"key {key} is empty; add --run-config '{key}="),
        configured_job(context(**config | {key: ""})),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_the_configured_job(local):
    _, config = local
    with configured_job(context(**config)) as job:
        assert len(job.roster) == 3
        assert (len(job.devel), len(job.test)) == (8, 8)
        assert job.pullers == 4
        assert job.folder.plan_path.is_file()
    with pytest.raises(InputError, match="holds a run already"), configured_job(context(**config)):
        pass
    again = config | {"resume": True, "plan": ""}
    with configured_job(context(**again)) as job:
        assert job.plan.federation.rounds == 1


def test_the_public_notes_of_a_warmup_are_read_at_the_server(tmp_path, make_plan, make_data, make_notes):
    """A real server trains on them before round 1, as a simulation does."""
    public = tmp_path / "public"
    public.mkdir()
    write_notes(public / "train.jsonl", make_notes(5, name="public"))
    plan = make_plan(warmup__source=str(public), warmup__notes=3, warmup__epochs=1)
    write_sites(plan, make_data(), tmp_path / "local")
    folder = tmp_path / "local"
    paths = {"plan": "plan.toml", "roster": "roster.toml", "data": "server/data", "out": "run"}
    config = {key: str(folder / path) for key, path in paths.items()}
    with configured_job(context(**config)) as job:
        assert [note.note_id for note in job.warmup_notes] == ["public-0", "public-1", "public-2"]
    (public / "train.jsonl").unlink()
    with pytest.raises(DataError, match="nor a folder with a train split"), configured_job(context(**config)):
        pass


def test_another_roster_or_plan_is_refused(local, make_plan):
    folder, config = local
    with configured_job(context(**config)):
        pass
    (folder / "plan.toml").write_text(make_plan().to_toml(), encoding="utf-8")
    with pytest.raises(PlanError, match="names no roster"), configured_job(context(**config)):
        pass
    with pytest.raises(PlanError, match="not the one of the run"):
        open_run(make_plan(seed=99), folder.parent / "run", resume=True)


def test_it_runs_a_federation_over_a_grid(tmp_path, make_plan, make_data):
    data = make_data()
    federation = federate(make_plan(federation__rounds=1), data.train)
    from common.host import ModelHost

    host = ModelHost.build(federation.plan, device="cpu")
    sites = {maker.name: maker(host) for maker in site_makers(federation, tmp_path / "spool")}
    by_partition = list(sites.values())
    client = make_client_app(lambda where: by_partition[where.node_config["partition-id"]].handle)
    results = []
    with open_run(federation.plan, tmp_path / "run", resume=False) as folder:
        job = FederationJob(
            plan=federation.plan,
            roster=federation.roster,
            folder=folder,
            host=host,
            devel=(),
            test=data.test,
            listener=ConsoleWatch(None),
            pullers=1,
        )
        app = make_server_app(lambda where: contextlib.nullcontext(job), nodes=3, on_result=results.append)
        app(InProcessGrid(client, sites), context())
    assert results[0]["rounds"] == 1
    assert results[0]["sites"] == 3
