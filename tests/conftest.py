"""A tiny random encoder and short notes of made-up words, so that no test needs the MiniLM or a corpus."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

DISEASES = ("asthma", "gout", "sepsis", "anemia", "scurvy")
DRUGS = ("aspirin", "heparin", "insulin")
WORDS = ("the", "patient", "has", "no", "history", "of", "takes", "was", "given", "for", "with", "and")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

PLAN: Mapping[str, Mapping[str, Any]] = {
    "task": {"entity_types": ["Disease", "Drug"]},
    "model": {"max_tokens": 32, "stride": 4},
    "federation": {"rounds": 2, "minimum_cohort": 1, "train_deadline": 30.0, "exchange_deadline": 30.0},
    "training": {"learning_rate": 5e-3, "batch_size": 8, "precision": "float32"},
    "secure_aggregation": {"enabled": False},
    "simulation": {"sites": 3, "threads": 1},
}


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers and 32 hidden units with a WordPiece tokenizer of its own, as a folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from common.seeding import torch_seed

    tokens = [*SPECIAL, *DISEASES, *DRUGS, *WORDS, ".", ",", *LETTERS, *(f"##{c}" for c in LETTERS)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    with torch_seed(1, "tiny"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        BertModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_plan(tiny_encoder: Path) -> Callable[..., Any]:
    """A function that makes a small plan; keyword arguments `section__field` change it."""
    from common.plan import Plan

    def make(seed: int = 7, **changes: Any) -> Plan:
        table: dict[str, Any] = {"seed": seed, **{name: dict(fields) for name, fields in PLAN.items()}}
        table["model"]["encoder"] = str(tiny_encoder)
        for name, value in changes.items():
            section, _, field = name.partition("__")
            table.setdefault(section, {})[field] = value
        return Plan.from_table(table)

    return make


@pytest.fixture(scope="session")
def make_notes() -> Callable[..., list[Any]]:
    """A function that makes short notes with a disease and, unless told otherwise, a drug in each."""
    from common.records import EntitySpan, Note

    def make(count: int, *, seed: int = 0, name: str = "note", drugs: bool = True) -> list[Note]:
        rng = random.Random(f"{seed}{name}")
        notes = []
        for i in range(count):
            words = rng.sample(WORDS, rng.randint(3, 8))
            entities = {rng.choice(DISEASES): "Disease"} | ({rng.choice(DRUGS): "Drug"} if drugs else {})
            for entity in entities:
                words.insert(rng.randint(0, len(words)), entity)
            text = " ".join(words) + " ."
            starts = {word: text.split().index(word) for word in entities}
            spans = []
            for word, label in entities.items():
                start = sum(len(w) + 1 for w in text.split()[: starts[word]])
                spans.append(EntitySpan(start=start, end=start + len(word), label=label))
            notes.append(Note(note_id=f"{name}-{i}", text=text, spans=tuple(sorted(spans))))
        return notes

    return make


@pytest.fixture(scope="session")
def make_data(make_notes: Callable[..., list[Any]]) -> Callable[..., Any]:
    """A function that makes a data set of a few dozen notes."""
    from common.ingestion import Dataset

    def make(train: int = 36) -> Dataset:
        return Dataset(
            train=tuple(make_notes(train, name="train")),
            devel=tuple(make_notes(8, name="devel")),
            test=tuple(make_notes(8, name="test")),
        )

    return make


@pytest.fixture(scope="session")
def data_folder(make_data: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set as JSONL files; copy it before changing it."""
    folder = tmp_path_factory.mktemp("data")
    data = make_data()
    for split in ("train", "devel", "test"):
        (folder / f"{split}.jsonl").write_text(jsonl(getattr(data, split)), encoding="utf-8")
    return folder


@pytest.fixture
def plan_file(make_plan: Callable[..., Any], tmp_path: Path) -> Path:
    """The small plan as a file."""
    path = tmp_path / "plan.toml"
    path.write_text(make_plan().to_toml(), encoding="utf-8")
    return path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a command line in this process as the installed command would, to its exit.

    Returns the exit code, standard output and standard error. An exception that is not `SystemExit` is what
    a user would see as a traceback, and fails the test.
    """
    import sys

    def run(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["fedward", *map(str, arguments)])
            patch.setenv("COLUMNS", "200")
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capfd.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


def jsonl(notes: Sequence[Any]) -> str:
    """Return notes as JSONL."""
    return "".join(
        json.dumps(
            {
                "id": note.note_id,
                "text": note.text,
                "spans": [{"start": s.start, "end": s.end, "label": s.label} for s in note.spans],
            }
        )
        + "\n"
        for note in notes
    )
