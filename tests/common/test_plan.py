"""A plan is whole and in range, or one sentence says which field is not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PlanError, ValidationError
from common.plan import PLAN_VERSION, Federation, Model, Plan, Privacy, Section, Training, read_plan

PLANS = Path(__file__).resolve().parents[2] / "simulation" / "plans"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_plan_is_all_defaults(tmp_path):
    assert read_plan(written(tmp_path, "")) == Plan()


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_plans_are_read_and_survive_being_written(path, tmp_path):
    plan = read_plan(path)
    again = read_plan(written(tmp_path, plan.to_toml()))
    assert again == plan
    assert again.hash == plan.hash


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.integers(1, 500),
    rate=st.floats(1e-9, 1.0),
    encoder=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
        str.strip
    ),
    types=st.lists(st.text("abcÄ病_-", min_size=1).filter(str.strip), min_size=1, max_size=5, unique=True),
)
def test_toml_round_trip(tmp_path_factory, rounds, rate, encoder, types):
    table = {
        "federation": {"rounds": rounds},
        "training": {"learning_rate": rate},
        "model": {"encoder": encoder},
        "task": {"entity_types": types, "label_map": {types[0]: types[-1]}},
    }
    plan = Plan.from_table(table)
    path = written(tmp_path_factory.getbasetemp(), plan.to_toml())
    assert read_plan(path) == plan


def test_the_hash_is_of_the_canonical_form():
    plan = Plan()
    canonical = json.dumps([PLAN_VERSION, plan.to_table()], sort_keys=True, separators=(",", ":"))
    assert plan.hash == hashlib.sha256(canonical.encode()).hexdigest()


def test_the_hash_does_not_depend_on_how_a_number_or_the_file_is_written(tmp_path):
    one = read_plan(written(tmp_path, "[training]\nlearning_rate = 1\n[federation]\nrounds = 3"))
    two = read_plan(
        written(tmp_path, "seed=13 # default\n[federation]\nrounds=3\n[training]\nlearning_rate=1.0")
    )
    assert one.hash == two.hash


def every_field() -> list[tuple[str, str]]:
    plan = dataclasses.replace(Plan(), privacy=Privacy(noise_multiplier=1.0, steps=8))
    return [
        (section, name) for section, fields in plan.to_table().items() if section != "seed" for name in fields
    ]


@pytest.mark.parametrize(("section", "name"), every_field())
def test_every_field_is_in_the_hash_and_names_itself_when_it_is_wrong(section, name):
    plan = dataclasses.replace(Plan(), privacy=Privacy(noise_multiplier=1.0, steps=8))
    part = getattr(plan, section)
    assert f'"{name}":' in json.dumps(plan.to_table()[section], separators=(",", ":"))
    with pytest.raises(ValidationError, match=rf"{section}\.{name}"):
        dataclasses.replace(part, **{name: object()})


def test_every_field_declares_a_check():
    for section in Section.__subclasses__():
        for item in dataclasses.fields(section):
            assert "check" in item.metadata, f"{section.title}.{item.name}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "unknown key 'sed'; did you mean 'seed'"),
        ("[federatoin]\nrounds = 1", "unknown key 'federatoin'; did you mean 'federation'"),
        ("[federation]\nround = 1", r"\[federation\] has an unknown key 'round'; did you mean 'rounds'"),
        ("[federation]\nrounds = 0", "federation.rounds is 0; it must be a whole number from 1 to 100000"),
        ("[federation]\nrounds = true", "federation.rounds is True"),
        ("[federation]\nrounds = 2.0", "federation.rounds is 2.0"),
        ("[training]\nlearning_rate = nan", "training.learning_rate is nan"),
        ("[training]\nlearning_rate = 0", "must be a number above 0 up to 1"),
        ('[federation]\noptimizer = "fedadm"', "Did you mean 'fedadam'"),
        ("[task]\nentity_types = []", "at least one entity type"),
        ('[task]\nentity_types = ["A", "A"]', "names an entity type twice"),
        ('[task]\nlabel_map = [["A"]]', "task.label_map"),
        ("[task]\nlabel_map = [1]", "task.label_map"),
        ("[task.label_map]\nA = 1", "task.label_map.A"),
        ("federation = 3", r"\[federation\] must be a table"),
        ("seed = -1", "seed is -1"),
        ("seed = 'x'", "seed is 'x'"),
        ("[model]\nstride = 64\nmax_tokens = 128", "model.stride is 64; it must be less than half"),
        ("[model]\nlora_rank = 4\ntrained_layers = 1", "leave one of the two out"),
        ("[federation]\nlocal_steps = 3", "give exactly one of them a positive value"),
        ("[federation]\nlocal_epochs = 0", "give exactly one of them a positive value"),
        ("[privacy]\nq = 0.1", "give exactly one of them a positive value"),
        ("[privacy]\nnoise_multiplier = 1.0\nsteps = 7", "must be a multiple of federation.rounds"),
        ("[federation\n", "is not valid TOML"),
        ("rounds = 1\nrounds = 2", "is not valid TOML"),
    ],
)
def test_bad_plans_get_one_sentence_with_file_and_field(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'name = "\xe9"'])
def test_a_plan_that_is_not_utf8(tmp_path, content):
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="cannot be read as UTF-8"):
        read_plan(path)


def test_a_missing_plan_and_a_folder(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "absent.toml")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("rounds=3", "federation", "rounds", 3),
        (" federation.rounds = 3 ", "federation", "rounds", 3),
        ("training.precision=bf16", "training", "precision", "bf16"),
        ("encoder=/data/my model", "model", "encoder", "/data/my model"),
        ('entity_types=["A","B"]', "task", "entity_types", ("A", "B")),
        ("secure_aggregation.enabled=false", "secure_aggregation", "enabled", False),
        ("warmup.epochs=2", "warmup", "epochs", 2),
    ],
)
def test_overrides(tmp_path, override, section, field, value):
    plan = read_plan(written(tmp_path, ""), [override])
    assert getattr(getattr(plan, section), field) == value


def test_an_optional_section_is_dropped(tmp_path):
    path = written(tmp_path, "[privacy]\nnoise_multiplier = 1.0\nsteps = 8")
    assert read_plan(path).privacy is not None
    assert read_plan(path, ["privacy=false"]).privacy is None
    assert read_plan(path, ["privacy=false", "seed=4"]).seed == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rounds", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("roudns=3", "no such field. Did you mean 'rounds'"),
        ("federation.round=3", "Did you mean 'federation.rounds'"),
        ("clip=1", "could mean privacy.clip, secure_aggregation.clip"),
        ("privacy=1", r"\[privacy\] is a table; set one of its fields"),
        ("rounds=many", "federation.rounds is 'many'"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    with pytest.raises(PlanError, match=message):
        read_plan(written(tmp_path, ""), [override])


def test_an_override_below_a_value_that_should_be_a_table(tmp_path):
    with pytest.raises(PlanError, match="must be a table"):
        read_plan(written(tmp_path, "federation = 3"), ["federation.rounds=2"])


def test_speed_is_apart_from_privacy():
    speed = {item.name for item in dataclasses.fields(Training)}
    assert not speed & {item.name for item in dataclasses.fields(Privacy)}
    assert Model.title != Federation.title
