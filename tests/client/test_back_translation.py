"""Back-translation with a real pair of tiny Marian models that learnt three sentences by heart."""

import random
import warnings

import pytest
import torch

from client.augmentation import Augmenter
from client.back_translation import LOST, BackTranslator, Translator
from common.errors import ModelError
from common.plan_augmentation import Augmentation
from common.records import EntitySpan, Note
from common.seeding import torch_seed

THERE = {
    "the patient has ENT0 .": "le malade souffre de ENT0 .",
    "ENT1 was given .": "on donne ENT1 .",
    "no pain and ENT0": "pas de mal",
}
BACK = {
    "le malade souffre de ENT0 .": "this man suffers from ENT0 .",
    "on donne ENT1 .": "he got ENT1 .",
    "pas de mal": "no ache",
}


def learnt(pairs, folder):
    """Save a Marian model of one layer that says what it was taught."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

    words = sorted({word for pair in pairs.items() for text in pair for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = MarianConfig(
        vocab_size=len(vocabulary),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        forced_eos_token_id=None,
        decoder_start_token_id=0,
    )
    with torch_seed(1, "marian"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MarianMTModel(config).train()
        given = tokenizer(list(pairs), return_tensors="pt", padding=True)
        wanted = tokenizer(list(pairs.values()), return_tensors="pt", padding=True).input_ids
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            labels = wanted.masked_fill(wanted == 0, -100)
            model(
                input_ids=given.input_ids, attention_mask=given.attention_mask, labels=labels
            ).loss.backward()
            optimizer.step()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    return learnt(THERE, folder / "there"), learnt(BACK, folder / "back")


@pytest.fixture(scope="module")
def translator(folders):
    return BackTranslator.open(folders)


def note_of(text, *mentions, words=False):
    spans = [
        EntitySpan(start=text.index(m), end=text.index(m) + len(m), label=label) for m, label in mentions
    ]
    offsets = []
    for word in text.split():
        start = text.index(word, offsets[-1][1] if offsets else 0)
        offsets.append((start, start + len(word)))
    return Note(note_id="n", text=text, spans=tuple(spans), words=tuple(offsets) if words else None)


def found_in(note):
    return [(note.text[s.start : s.end], s.label) for s in note.spans]


TEXT = "the patient has breast cancer .\nINN 5-fluorouracil was given ."
MENTIONS = (("breast cancer", "Disease"), ("INN 5-fluorouracil", "Drug"))


@pytest.mark.parametrize("words", [False, True])
def test_entities_come_back_on_their_own_characters(translator, words):
    refused = []
    changed = translator.translate(note_of(TEXT, *MENTIONS, words=words), on_refusal=refused.append)
    assert changed.text == "this man suffers from breast cancer .\nhe got INN 5-fluorouracil ."
    assert found_in(changed) == list(MENTIONS)
    assert refused == []
    assert (changed.words is not None) is words
    if words:
        assert {changed.text[s:e] for s, e in changed.words} >= {"breast", "cancer", "suffers", "5"}


def test_a_lost_placeholder_refuses_the_whole_note_and_says_so(translator):
    refused = []
    note = note_of("no pain and gout", ("gout", "Disease"))
    for _ in range(2):
        assert translator.translate(note, on_refusal=refused.append) is note
    assert refused == [LOST, LOST]


def test_one_lost_placeholder_refuses_the_other_sentences_too(translator):
    note = note_of("the patient has gout .\nno pain and scurvy", ("gout", "Disease"), ("scurvy", "Disease"))
    assert translator.translate(note) is note


class Says(Translator):
    """Stands in for a model that answers something else."""

    answer = ""

    def __init__(self, answer):
        object.__setattr__(self, "answer", answer)

    def translate(self, sentences):
        return [self.answer for _ in sentences]


@pytest.mark.parametrize("answer", ["ENT0 and ENT0", "ENT0ly", "ENT00", "entity", "", "ent0"])
def test_placeholders_that_came_back_wrong_are_refused(answer):
    note = note_of("the gout", ("gout", "Disease"))
    assert BackTranslator(Says(answer), Says(answer)).translate(note) is note


@pytest.mark.parametrize("answer", ["ENT0", "(ENT0)", "x ENT0, y", "ENT0-like"])
def test_placeholders_that_came_back_right_are_taken(answer):
    changed = BackTranslator(Says(answer), Says(answer)).translate(note_of("the gout", ("gout", "Disease")))
    assert found_in(changed) == [("gout", "Disease")]
    assert changed.text == answer.replace("ENT0", "gout")


def test_a_note_that_holds_the_placeholder_gets_another_one():
    note = note_of("ENT0 is no gout", ("gout", "Disease"))
    changed = BackTranslator(Says("ENT0 ENTX0"), Says("ENT0 ENTX0")).translate(note)
    assert (changed.text, found_in(changed)) == ("ENT0 gout", [("gout", "Disease")])


def test_the_augmenter_translates_by_its_rate_and_counts_refusals(folders):
    section = Augmentation(back_translation=1.0, translation_models=list(folders))
    augmenter = Augmenter(section, entity_types=("Disease", "Drug"))
    notes = [note_of(TEXT, *MENTIONS), note_of("no pain and gout", ("gout", "Disease"))]
    changed = augmenter.view(notes, random.Random(1))
    assert changed[0].text.startswith("this man")
    assert changed[1] is notes[1]
    assert augmenter.refused == {LOST: 1}


def test_what_is_no_translation_model_is_refused(tmp_path, tiny_encoder):
    for folder in (tmp_path, tmp_path / "absent", tiny_encoder):
        with pytest.raises(ModelError, match="translation model"):
            Translator.open(str(folder))
