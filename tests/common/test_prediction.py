"""Predictions land on the right note, word and character."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.host import build_encoding
from common.prediction import evaluate, predict_spans, predict_tags
from common.records import Note


class Lexicon(nn.Module):
    """A classifier that knows one tag for each piece id; it stands in for a trained model."""

    def __init__(self, tags: int, by_piece: dict[int, int]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(200, tags), requires_grad=False)
        for piece, tag in by_piece.items():
            self.table[piece, tag] = 1.0
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        return type("Output", (), {"logits": self.table[input_ids]})


@pytest.fixture
def encoding(make_plan):
    return build_encoding(make_plan())


@pytest.fixture
def lexicon(encoding):
    tags = encoding.schema.tags
    ids = encoding.tokenizer.convert_tokens_to_ids
    entities = {"asthma": "B-Disease", "gout": "B-Disease", "sepsis": "B-Disease", "anemia": "B-Disease"}
    entities |= {"scurvy": "B-Disease", "aspirin": "B-Drug", "heparin": "B-Drug", "insulin": "B-Drug"}
    return Lexicon(len(tags), {ids(word): tags.index(tag) for word, tag in entities.items()})


def test_a_perfect_model_scores_one_and_a_blind_one_zero(encoding, lexicon, make_notes):
    notes = make_notes(30)
    perfect = evaluate(lexicon, notes, encoding, precision="float32")
    assert perfect.micro_f1 == 1.0
    assert perfect.num_notes == 30
    blind = evaluate(Lexicon(len(encoding.schema.tags), {}), notes, encoding, precision="float32")
    assert blind.micro_f1 == 0.0
    assert blind.to_dict()["token"]["O"]["recall"] == 1.0


def test_the_table_has_averages_types_and_words(encoding, lexicon, make_notes):
    table = evaluate(lexicon, make_notes(5), encoding, precision="float32").to_dict()
    assert set(table) == {"micro", "macro", "weighted", "per_entity", "token", "num_notes"}
    assert set(table["per_entity"]) == {"Disease", "Drug"}
    assert set(table["token"]) == set(encoding.schema.tags)


def test_spans_come_back_at_exact_characters(encoding, lexicon, make_notes):
    notes = make_notes(20, seed=3)
    for note, spans in predict_spans(lexicon, notes, encoding):
        assert spans == note.spans


def test_a_note_without_words_and_an_empty_list(encoding, lexicon):
    blank = Note(note_id="blank", text=" \n\t")
    full = Note(note_id="full", text="has gout")
    found = {note.note_id: spans for note, spans in predict_spans(lexicon, [blank, full, blank], encoding)}
    assert found["blank"] == ()
    assert [full.text[s.start : s.end] for s in found["full"]] == ["gout"]
    assert list(predict_spans(lexicon, [], encoding)) == []


def test_tags_are_in_the_order_given_although_batches_are_by_length(encoding, lexicon, make_notes):
    examples = encoding.examples(make_notes(80, seed=5))
    together = predict_tags(lexicon, examples, pad_id=encoding.pad_id, precision="float32")
    assert len({shape[1] for shape in lexicon.shapes}) > 1
    for example, tags in zip(examples, together, strict=True):
        alone = lexicon.table[torch.from_numpy(example.input_ids.astype(np.int64))].argmax(-1)
        assert tags.tolist() == alone.tolist()


def test_progress_counts_every_window(encoding, lexicon, make_notes):
    seen: list[tuple[int, int]] = []
    examples = encoding.examples(make_notes(70))
    predict_tags(lexicon, examples, pad_id=0, on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 70), (70, 70)]


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored(encoding, lexicon, make_notes, training):
    lexicon.train(training)
    evaluate(lexicon, make_notes(2), encoding)
    assert lexicon.training is training


@pytest.mark.slow
def test_a_note_of_100000_words(encoding, lexicon):
    words = ["the"] * 100_000
    places = range(0, 100_000, 997)
    for place in places:
        words[place] = "gout"
    note = Note(note_id="long", text=" ".join(words))
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    ((_, spans),) = predict_spans(lexicon, [note], encoding)
    assert [span.start for span in spans] == [starts[place] for place in places]
