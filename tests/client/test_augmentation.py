"""Views: the same under a seed wherever a note lies, one contribution under privacy, nothing from elsewhere."""

import dataclasses
import hashlib
import random

import numpy as np
import pytest
import torch

from client.augmentation import Augmenter, EpochViews, UnitViews
from client.clip_rule import ClipRule
from client.clipping import ENGINES, make_engine
from client.round_training import PlainTraining, RoundTask, SiteRecords
from client.sampling import Unit, group_units, physical_batches
from client.spool import UpdateSpool
from common.errors import DataError, ValidationError
from common.host import ModelHost
from common.labels import LabelSchema
from common.parameters import vector_hash
from common.plan_augmentation import Augmentation
from common.seeding import derive_seed

NOISE = {"typo": 0.5, "case": 0.3, "swap": 0.3, "deletion": 0.2, "mention": 0.5, "label_wise": 0.2}


@pytest.fixture(scope="module")
def host(make_plan):
    return ModelHost.build(make_plan(model__dropout=0.0), device="cpu")


def augmenter(**fields):
    return Augmenter(Augmentation(**{**NOISE, **fields}), entity_types=("Disease", "Drug"))


def epochs(host, notes, augment, *, names=("site-1", 1)):
    return EpochViews(
        augmenter=augment,
        notes=notes,
        windows=host.encoding.examples(notes),
        encoding=host.encoding,
        seed=7,
        names=names,
    )


def ids_by_note(windows):
    found = {}
    for window in windows:
        found.setdefault(window.note_id, []).append(window.input_ids.tolist())
    return found


def test_a_view_does_not_depend_on_where_its_note_lies(host, make_notes):
    notes = make_notes(6)
    forward = epochs(host, notes, augmenter(views=3))
    backward = epochs(host, notes[::-1], augmenter(views=3))
    alone = epochs(host, notes[2:3], augmenter(views=3))
    assert ids_by_note(forward.epoch(1)) == ids_by_note(backward.epoch(1))
    assert ids_by_note(alone.epoch(1))[notes[2].note_id] == ids_by_note(forward.epoch(1))[notes[2].note_id]


def test_views_are_new_in_each_epoch_round_and_view_and_repeat_under_the_seed(host, make_notes):
    notes = make_notes(8)
    first = epochs(host, notes, augmenter(views=2))
    assert ids_by_note(first.epoch(0)) == ids_by_note(epochs(host, notes, augmenter(views=2)).epoch(0))
    assert ids_by_note(first.epoch(0)) != ids_by_note(first.epoch(1))
    later = epochs(host, notes, augmenter(views=2), names=("site-1", 2))
    assert ids_by_note(first.epoch(0)) != ids_by_note(later.epoch(0))
    original, one, two = zip(*ids_by_note(first.epoch(0)).values(), strict=True)
    assert original != one != two
    assert len(first) == 3 * 8


def test_the_original_can_be_left_out(host, make_notes):
    notes = make_notes(4)
    found = epochs(host, notes, augmenter(views=2, keep_original=False))
    assert len(found) == len(found.epoch(0)) == 8
    originals = {tuple(w.input_ids) for w in host.encoding.examples(notes)}
    assert len(originals & {tuple(w.input_ids) for w in found.epoch(0)}) < 4


def private_views(host, notes, **fields):
    return UnitViews(
        augmenter(**fields),
        notes=notes,
        encoding=host.encoding,
        unit="record",
        max_windows=4,
        window_key=b"k",
        rng=random.Random(5),
    )


def grouped(host, notes):
    return group_units(host.encoding.examples(notes))


def clipped(host, engine, units):
    host.model.train()
    batches = list(physical_batches(units, token_budget=256))
    total = engine.clipped_sum(host.model, batches).gradients.values()
    return torch.cat([gradient.flatten() for gradient in total])


def views_as_units(units):
    """The weakness that the next test is there for: each view a unit of its own."""
    for unit in units:
        start = 0
        for number, size in enumerate(unit.views):
            yield Unit(unit_id=f"{unit.unit_id}/{number}", windows=unit.windows[start : start + size])
            start += size


@pytest.mark.parametrize("mode", ["auto", "flat"])
@pytest.mark.parametrize("planted", [False, True], ids=["as-built", "views-as-units"])
def test_a_unit_with_many_views_moves_the_sum_by_one_clip(host, make_notes, mode, planted):
    engine = make_engine("bookkeeping", ClipRule(mode=mode, max_grad_norm=0.01))
    units = private_views(host, make_notes(4), views=5)(grouped(host, make_notes(4)))
    assert [len(unit.views) for unit in units] == [6] * 4
    place = views_as_units if planted else list
    moved = [
        clipped(host, engine, list(place(units)))
        - clipped(host, engine, list(place(units[:i] + units[i + 1 :])))
        for i in range(len(units))
    ]
    most = max(float(torch.linalg.vector_norm(step)) for step in moved)
    assert (most <= engine.sensitivity() * 1.001) is not planted
    assert most > 0.9 * engine.sensitivity()


def test_a_units_gradient_is_the_mean_over_its_views(host, make_notes):
    # A bound that clips nothing shows the gradient itself.
    engine = make_engine("bookkeeping", ClipRule(mode="flat", max_grad_norm=1e5))
    (unit,) = private_views(host, make_notes(1), views=3)(grouped(host, make_notes(1)))
    alone = torch.stack([clipped(host, engine, [view]) for view in views_as_units([unit])])
    torch.testing.assert_close(clipped(host, engine, [unit]), alone.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_engines_agree_on_units_with_views(host, make_notes):
    units = private_views(host, make_notes(3), views=2)(grouped(host, make_notes(3)))
    sums = [
        clipped(host, make_engine(name, ClipRule(mode="flat", max_grad_norm=0.1)), units) for name in ENGINES
    ]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-3, atol=1e-6)


def test_a_private_view_holds_nothing_of_other_units(host, make_notes):
    notes = make_notes(5)
    unit = grouped(host, notes)[3]
    among = private_views(host, notes, views=4)([unit])
    alone = private_views(host, notes[3:4], views=4)([unit])
    assert [w.input_ids.tolist() for w in among[0].windows] == [
        w.input_ids.tolist() for w in alone[0].windows
    ]


def test_site_sources_would_let_other_units_in(host, make_notes):
    """The plant for the test above: with words of the site, a view does depend on the other notes."""
    notes = make_notes(5)
    section = Augmentation(label_wise=1.0, label_wise_source="site", mention=1.0, mention_source="site")
    views = [
        [
            n.text
            for n in Augmenter(section, entity_types=("Disease",), site=site).view(
                notes[3:4], random.Random(1)
            )
        ]
        for site in (notes, notes[3:4])
    ]
    assert views[0] != views[1]


def test_private_randomness_is_secret_by_default(host, make_notes):
    notes = make_notes(6)
    found = []
    for _ in range(2):
        random.seed(1)
        np.random.seed(1)
        views = UnitViews(
            augmenter(views=2),
            notes=notes,
            encoding=host.encoding,
            unit="record",
            max_windows=4,
            window_key=b"",
        )
        found.append([w.input_ids.tolist() for unit in views(grouped(host, notes)) for w in unit.windows])
    assert found[0] != found[1]


def test_a_patients_notes_are_viewed_together(host, make_notes):
    notes = [dataclasses.replace(note, patient_id=f"p{i // 2}") for i, note in enumerate(make_notes(6))]
    units = group_units(host.encoding.examples(notes, unit="patient"))
    views = UnitViews(
        augmenter(views=3), notes=notes, encoding=host.encoding, unit="patient", max_windows=3, window_key=b""
    )(units)
    assert [(unit.unit_id, unit.views) for unit in views] == [(f"p{i}", (2, 2, 2, 2)) for i in range(3)]
    assert {w.unit_id for w in views[0].windows} == {"p0"}


def test_labels_of_views_are_valid(host, make_notes):
    schema = LabelSchema(entity_types=("Disease", "Drug"))
    notes = make_notes(20)
    for view in augmenter(views=1).views(notes, lambda number: random.Random(number)):
        for window, note in zip(host.encoding.examples(view), view, strict=True):
            tags = [schema.tags[i] for i in window.labels[window.labels >= 0]]
            assert sum(tag.startswith("B-") for tag in tags) == len(note.spans)
            for previous, tag in zip(["O", *tags], tags, strict=False):
                assert not tag.startswith("I-") or previous[2:] == tag[2:]


def write_lexicon(path, text):
    path.write_text(text, encoding="utf-8")
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_public_lexicons_are_used_and_pinned(tmp_path, make_notes):
    words = write_lexicon(tmp_path / "synonyms.tsv", "# public\nthe\tone\n\nPatient\tperson\n")
    names = write_lexicon(tmp_path / "mentions.tsv", "Disease\tplague\nDrug\tquinine\n")
    fields = {
        "synonym": 1.0,
        "mention": 1.0,
        "synonyms": words["file"],
        "synonyms_sha256": words["sha256"],
        "mentions": names["file"],
        "mentions_sha256": names["sha256"],
        "mention_source": "lexicon",
    }
    found = Augmenter(Augmentation(**fields), entity_types=("Disease", "Drug"))
    for note in found.view(make_notes(10), random.Random(1)):
        assert {note.text[s.start : s.end] for s in note.spans} <= {"plague", "quinine"}
        assert not {"the", "patient"} & set(note.text.split())
    with pytest.raises(DataError, match="not the list that was agreed on"):
        Augmenter(Augmentation(**{**fields, "synonyms_sha256": "0" * 64}), entity_types=("Disease", "Drug"))
    with pytest.raises(DataError, match="line 2: the type is none of Disease"):
        Augmenter(Augmentation(**fields), entity_types=("Disease",))


PRIVATE = {"privacy__q": 0.5, "privacy__steps": 4, "privacy__noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mention": 0.1, "mention_source": "site"}, "words of other units"),
        ({"label_wise": 0.1, "label_wise_source": "site"}, "words of other units"),
        ({"synonym": 0.1, "synonyms": "s.tsv"}, "add 'synonyms' to augmentation.public"),
        ({"synonym": 0.1, "synonyms": "s.tsv", "public": ["synonyms"]}, "synonyms_sha256 is empty"),
        ({"mention": 0.1, "mentions": "m.tsv", "mention_source": "lexicon"}, "add 'mentions'"),
        ({"back_translation": 0.1, "translation_models": ["a", "b"]}, "add 'translation'"),
    ],
)
def test_a_private_plan_refuses_sources_outside_the_unit(make_plan, fields, reason):
    changes = {f"augmentation__{name}": value for name, value in fields.items()}
    make_plan(**changes)
    with pytest.raises(ValidationError, match=reason):
        make_plan(**changes, **PRIVATE)


def test_a_private_plan_takes_sources_that_are_declared_public(make_plan):
    fields = {"synonym": 0.1, "synonyms": "s.tsv", "synonyms_sha256": "0" * 64, "public": ["synonyms"]}
    plan = make_plan(**{f"augmentation__{name}": value for name, value in fields.items()}, **PRIVATE)
    assert plan.augmentation.public == ("synonyms",)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"views": 2}, "no operation with a rate above 0"),
        ({"synonym": 0.1}, "augmentation.synonyms is empty"),
        ({"mention": 0.1, "mention_source": "lexicon"}, "augmentation.mentions is empty"),
        ({"back_translation": 0.1}, "translation_models is empty"),
        ({"typo": 1.5}, "augmentation.typo is 1.5"),
        ({"typo": 0.1, "synonyms_sha256": "xyz"}, "64 hexadecimal digits"),
        ({"typo": 0.1, "public": ["records"]}, "must be one of"),
        ({"back_translation": 0.1, "translation_models": ["one"]}, "there and back"),
    ],
)
def test_unusable_sections_are_refused(make_plan, fields, reason):
    with pytest.raises(ValidationError, match=reason):
        make_plan(**{f"augmentation__{name}": value for name, value in fields.items()})


def test_a_plan_without_the_section_keeps_its_hash_and_one_with_it_reads_back(make_plan):
    from common.plan import Plan

    assert "augmentation" not in make_plan().to_table()
    plan = make_plan(augmentation__typo=0.1, adversarial__method="pgd", features__shape=True)
    assert Plan.from_table(plan.to_table()) == plan
    assert plan.hash != make_plan().hash


def test_a_plain_round_trains_on_views(make_plan, make_notes, tmp_path):
    notes = make_notes(12)
    ends, seen = {}, []
    for name, changes in {"none": {}, "one": NOISE, "again": NOISE}.items():
        plan = make_plan(**{f"augmentation__{key}": value for key, value in changes.items()})
        host = ModelHost.build(plan, device="cpu")
        start = host.read()
        training = PlainTraining(
            name="site-1", plan=plan, weight=1.0, sites=1, host=host, records=SiteRecords(notes, host)
        )
        spool = UpdateSpool(tmp_path / name, plan_hash=plan.hash, run_id="r")
        task = RoundTask(
            run_id="r", server_round=1, attempt=0, model_hash=vector_hash(start), model=lambda s=start: s
        )
        training.finish(task, spool)
        update = spool.load(server_round=1, model_hash=vector_hash(start))
        ends[name] = update.fields["delta"]
        seen.append(int(update.fields["num_examples"][0]))
    assert seen == [12, 24, 24]
    np.testing.assert_array_equal(ends["one"], ends["again"])
    assert np.abs(ends["one"] - ends["none"]).max() > 0
    assert derive_seed(1, "augment", "n", 0, 0) != derive_seed(1, "augment", "n", 0, 1)
