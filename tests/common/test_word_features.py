"""Word features: on the words' own pieces, into the head, and back from a saved folder."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from client.clip_rule import ClipRule
from client.clipping import ENGINES, make_engine
from client.private_trainer import PrivateRecipe, PrivateTrainer
from client.sampling import group_units, physical_batches
from client.trainer import LocalTrainer
from common.errors import ModelError, ValidationError
from common.feature_head import SETTINGS, FeatureTagger
from common.host import ModelHost
from common.model import load_model, save_model
from common.plan_augmentation import Features
from common.prediction import evaluate
from common.records import Note
from common.tagger import open_tagger
from common.word_features import COARSE, SHAPES, UNIVERSAL, WordFeatures, feature_sizes, shape_of

ON = {"features__tagger": "blank:en", "features__dimension": 4}
PRIVATE = {"privacy__q": 0.5, "privacy__steps": 4, "privacy__noise_multiplier": 1.0}


@pytest.fixture(scope="module")
def host(make_plan):
    return ModelHost.build(make_plan(**ON, model__dropout=0.0), device="cpu")


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("pain", "lower"),
        ("Pain", "capital"),
        ("I", "capital"),
        ("MRI", "capitals"),
        ("mRNA", "mixed"),
        ("120", "digits"),
        ("BRCA1", "with-digits"),
        ("肺", "caseless"),
        ("--", "punctuation"),
    ],
)
def test_shapes(word, shape):
    assert shape_of(word) == shape


def test_the_rules_of_spacy_need_no_model():
    features = WordFeatures.open(Features(tagger="blank:en"))
    ids = features.of(Note(note_id="n", text="The dose is 12 mg ."))
    assert [COARSE[i - 1] for i in ids[:, 1]] == [
        "function", "content", "function", "number", "content", "punctuation",
    ]  # fmt: skip
    assert [SHAPES[i - 1] for i in ids[:, 0]] == [
        "capital",
        "lower",
        "lower",
        "digits",
        "lower",
        "punctuation",
    ]


def test_features_lie_on_the_first_pieces_of_owned_words(host, make_notes):
    notes = [
        Note(note_id="long", text="asthma 12 Pain xyz " * 12),
        Note(note_id="none", text=" "),
        *make_notes(3),
    ]
    for example in host.encoding.examples(notes):
        owned = example.words >= 0
        assert example.features.shape == (example.num_tokens, 2)
        assert (example.features[owned] > 0).all()
        assert (example.features[~owned] == 0).all()
    long = [e for e in host.encoding.examples(notes) if e.note_id == "long"]
    assert len(long) > 1
    shapes = {SHAPES[s - 1] for e in long for s in e.features[e.words % 4 == 1, 0]}
    assert shapes == {"digits"}


def test_features_reach_the_logits_and_nothing_known_adds_nothing(host, make_notes):
    host.model.eval()
    (batch,) = physical_batches(group_units(host.encoding.examples(make_notes(2))), token_budget=512)
    with torch.inference_mode():
        plain = host.model.tagger(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        without = host.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        with_them = host.model(**batch.inputs).logits
    torch.testing.assert_close(without, plain)
    assert not torch.allclose(with_them, plain)


def test_engines_agree_on_the_feature_embeddings(host, make_notes):
    host.model.train()
    units = group_units(host.encoding.examples(make_notes(5)))
    sums = []
    for name in ENGINES:
        engine = make_engine(name, ClipRule(mode="flat", max_grad_norm=0.1))
        sums.append(engine.clipped_sum(host.model, physical_batches(units, token_budget=512)).gradients)
    names = [name for name in sums[0] if "feature_classifier" in name]
    assert len(names) == 3
    for name in names:
        assert sums[0][name].abs().sum() > 0
        for other in sums[1:]:
            torch.testing.assert_close(other[name], sums[0][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("extra", [{}, {"model__lora_rank": 2}, {"adversarial__method": "fgm"}])
def test_plain_and_private_training_move_the_feature_head(make_plan, make_notes, extra):
    plan = make_plan(**ON, **PRIVATE, **extra)
    host = ModelHost.build(plan, device="cpu")
    head = host.model.feature_classifier.projection.weight
    examples = host.encoding.examples(make_notes(8))
    recipe = PrivateRecipe.of(plan, public_units=8, device=torch.device("cpu"))
    trainer = PrivateTrainer(host.model, recipe, pad_id=0)
    trainer.check()
    before = head.detach().clone()
    trainer.train(recipe.units(examples), server_round=1)
    assert not torch.equal(head, before)
    before = head.detach().clone()
    LocalTrainer(host.model, make_plan(**ON, **extra), pad_id=0).train(examples, site="s", server_round=1)
    assert not torch.equal(head, before)


def test_a_saved_model_comes_back_with_its_features(host, make_notes, tmp_path):
    notes = make_notes(12)
    host.model.eval()
    save_model(host.model, host.encoding.tokenizer, tmp_path)
    model, encoding = open_tagger(tmp_path)
    assert isinstance(model, FeatureTagger)
    assert evaluate(model, notes, encoding).to_dict() == evaluate(host.model, notes, host.encoding).to_dict()
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path)
    ids = torch.tensor([[2, 8, 9, 3]])
    torch.testing.assert_close(plain(input_ids=ids).logits, host.model.tagger(input_ids=ids).logits)
    save_model(host.model.tagger, host.encoding.tokenizer, tmp_path)
    assert not isinstance(load_model(tmp_path), FeatureTagger)


def test_a_broken_head_is_one_clear_sentence(host, tmp_path):
    save_model(host.model, host.encoding.tokenizer, tmp_path)
    (tmp_path / SETTINGS).write_text('{"shape": true, "dimension": 5}')
    with pytest.raises(ModelError, match="does not hold the feature head"):
        load_model(tmp_path)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(ModelError, match="cannot be read as feature settings"):
        load_model(tmp_path)


def test_a_given_pipeline_tags(tmp_path, make_plan):
    import spacy

    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("attribute_ruler")
    ruler.add(patterns=[[{"LOWER": "the"}]], attrs={"POS": "DET"})
    pipeline.to_disk(tmp_path / "tagger")
    section = Features(shape=False, tagger=str(tmp_path / "tagger"))
    ids = WordFeatures.open(section).of(Note(note_id="n", text="The pain"))
    np.testing.assert_array_equal(ids, [[1 + UNIVERSAL.index("DET")], [0]])
    assert feature_sizes(section) == (1 + len(UNIVERSAL),)
    fields = {"features__tagger": section.tagger}
    with pytest.raises(ValidationError, match="add 'tagger' to features.public"):
        make_plan(**fields, **PRIVATE)
    make_plan(**fields, features__public=["tagger"], **PRIVATE)


def test_what_cannot_tag_is_refused(tmp_path):
    import spacy

    with pytest.raises(ModelError, match="which spaCy cannot open"):
        WordFeatures.open(Features(tagger=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match="which spaCy cannot open"):
        WordFeatures.open(Features(tagger="blank:xyzzy"))
    spacy.blank("en").to_disk(tmp_path / "silent")
    with pytest.raises(ModelError, match="gives no word a part of speech"):
        WordFeatures.open(Features(tagger=str(tmp_path / "silent")))
    with pytest.raises(ValidationError, match="neither features.shape nor features.tagger"):
        Features(shape=False)
