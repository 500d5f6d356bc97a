"""The report tells what is planted; its page is escaped and stays at the site; its export hides small cells."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import shutil
import subprocess
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from client.cli import main
from client.keys import load_identity_key, make_identity_key
from client.quality import QualityReport, binned, examine
from client.quality_export import THRESHOLD, export_of, suppress
from client.quality_labels import check_labels
from client.quality_page import render_quality
from common.audit_log import verify
from common.errors import InputError
from common.host import build_encoding
from common.ingestion import Dataset
from common.labels import LabelSchema
from common.records import EntitySpan, Note

MARK = "<script>alert('zebra')</script>"


@pytest.fixture(scope="module")
def data(make_notes) -> Dataset:
    train = make_notes(60, name="train")
    evil = dataclasses.replace(
        train[0],
        note_id="evil",
        text=f"{MARK} has gout {MARK} .",
        spans=(EntitySpan(start=36, end=40, label="Drug"),),
    )
    assert evil.text[36:40] == "gout"
    patients = [
        dataclasses.replace(n, patient_id=f"p{i // 3}") for i, n in enumerate([*train, train[1], evil])
    ]
    devel = [dataclasses.replace(n, patient_id="p0") for n in make_notes(12, name="devel")]
    long = " ".join(f"word{i}" for i in range(30))
    leaked = Note(note_id="leak", text=long, patient_id="p1")
    ids = itertools.count()
    return Dataset(
        train=tuple(dataclasses.replace(n, note_id=f"t{next(ids)}") for n in [*patients, leaked]),
        devel=tuple(dataclasses.replace(n, note_id=f"d{next(ids)}") for n in [*devel, leaked]),
    )


@pytest.fixture(scope="module")
def report(data, make_plan) -> QualityReport:
    return examine("st-mary", data, build_encoding(make_plan()), plan_hash="ab" * 32)


def test_what_is_planted_is_told(report):
    facts = report.facts
    assert facts["splits"]["train"]["notes"] == 63
    assert facts["duplicates"]["train"]["exact"] == 1
    assert facts["leakage"]["devel in train"] == {"notes": 1, "patients": 2}
    assert facts["splits"]["train"]["patients"] == 21
    assert [part["unit"] for part in facts["privacy"]] == ["record", "patient"]
    assert sum(facts["lengths"].values()) == 63 + 13
    assert facts["encoder"]["pieces_per_word"] >= 1
    json.dumps(facts, allow_nan=False)


def test_bins_hold_every_value():
    assert binned([0, 1, 9, 10, 7000], (1, 10, 5000)) == {"0": 1, "1-9": 2, "10-4999": 1, "5000+": 1}


def test_a_flipped_label_is_suspicious(make_notes):
    schema = LabelSchema(entity_types=("Disease", "Drug"))
    notes = make_notes(300, name="noise")
    flipped = set(random.Random(1).sample(range(300), 15))
    other = {"Disease": "Drug", "Drug": "Disease"}
    wrong = [
        dataclasses.replace(
            note,
            spans=tuple(
                dataclasses.replace(s, label=other[s.label]) if i in flipped and k == 0 else s
                for k, s in enumerate(note.spans)
            ),
        )
        for i, note in enumerate(notes)
    ]
    result = check_labels(wrong, [n.note_id for n in wrong], schema)
    named = [one.note_id for one in result.candidates[:15]]
    right = sum(name in {f"noise-{i}" for i in flipped} for name in named)
    assert right >= 10, "one note in twenty is flipped: chance would find one"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes += attributes
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def suspicious(report: QualityReport) -> QualityReport:
    """The report with a candidate whose text attacks the page."""
    from client.quality_labels import LabelCheck, Suspicion

    one = Suspicion(
        note_id=MARK, start=0, end=1, given=MARK, suggested="", margin=0.9, excerpt=(MARK, MARK, MARK)
    )
    labels = LabelCheck(words=1, candidates=(one, *report.labels.candidates), agreement=0.5)
    return dataclasses.replace(report, site=MARK, labels=labels)


def test_text_of_records_is_escaped_and_the_page_fetches_nothing(report):
    other = {"site": MARK, "labels": {"mentions": {}, "share_of_shown": {}}}
    html = render_quality(suspicious(report), others=[other])
    page = Tags(html)
    assert "script" not in page.names
    assert html.count("&lt;script&gt;") >= 5
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not [n for n, _ in page.attributes if n in ("src", "href", "srcset") or n.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", html)


@pytest.mark.parametrize("size", [2, 3])
def test_no_withheld_cell_can_be_told_from_the_table_and_its_total(size):
    threshold = 4
    worlds = defaultdict(set)
    for counts in itertools.product(range(15), repeat=size):
        shown = suppress({str(i): count for i, count in enumerate(counts)}, threshold=threshold)
        worlds[tuple(shown.values()), sum(counts)].add(counts)
    checked = 0
    for (shown, total), possible in worlds.items():
        # Sums of one small table say so much by themselves that nothing can be hidden behind them.
        # Above 14 some worlds are not in the product.
        if not 2 * threshold <= total < 15:
            continue
        for i, cell in enumerate(shown):
            small = {world[i] for world in possible if 0 < world[i] < threshold}
            if cell is None and any(0 < world[i] < threshold for world in possible):
                checked += 1
                assert small == set(range(1, threshold)), (shown, total)
    assert checked > 10


def test_hiding_behind_the_smallest_cell_would_tell():
    # What the rule guards against: 9 beside cells of 96; hidden behind the smallest, 105 in all leaves only 9.
    shown = suppress({"a": 96, "b": 9, "c": 96})
    assert shown == {"a": None, "b": None, "c": 96}
    shown = suppress({"a": 500, "b": 9, "c": 96})
    assert shown == {"a": None, "b": None, "c": 96}, "the first in the table hides it, however large"


def test_the_export_holds_no_text_of_any_note(report, data):
    text = json.dumps(export_of(report.facts), ensure_ascii=False)
    for note in (*data.train, *data.devel):
        assert note.text not in text
        for span in note.spans:
            assert note.text[span.start : span.end] not in text
    assert "zebra" not in text
    assert "not differential privacy" in text
    assert f'"threshold": {THRESHOLD}' in text


def test_a_type_of_few_people_is_withheld_however_often_it_occurs(report):
    facts = json.loads(json.dumps(report.facts))
    facts["labels"]["per_type"]["Drug"] |= {"mentions": 400, "units": 3}
    labels = export_of(facts)["labels"]
    assert labels["mentions"]["Drug"] is None
    assert "Drug" not in labels["share_of_shown"]


def test_data_of_few_people_is_not_exported(report):
    facts = json.loads(json.dumps(report.facts))
    facts["privacy"][-1]["units"] = THRESHOLD - 1
    with pytest.raises(InputError, match="fewer than 10 units"):
        export_of(facts)


@pytest.fixture
def site_file(tmp_path, plan_file, data_folder) -> Path:
    make_identity_key(tmp_path / "identity.pem")
    path = tmp_path / "site.toml"
    path.write_text(
        f'[site]\nname = "st-mary"\ndata = "{data_folder}"\nroster = "roster.toml"\nspool = "spool"\n'
        f'plan = "{plan_file}"\n[keys]\nidentity = "identity.pem"\n'
    )
    return path


def test_the_command_leaves_private_files_and_exports_nothing_unasked(call, site_file, tmp_path):
    code, out, err = call(main, "report", "--site", site_file, "--out", tmp_path / "q")
    assert code == 0, err
    assert "stays at the site" in out
    for name in ("quality.html", "quality.json"):
        assert (tmp_path / "q" / name).stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "spool").exists()


def test_an_export_needs_its_release_which_is_audited(call, site_file, tmp_path):
    import hashlib

    export = tmp_path / "export.json"
    arguments = ("report", "--site", site_file, "--out", tmp_path / "q", "--export", export)
    code, _, err = call(main, *arguments)
    assert (code, export.exists()) == (2, False)
    assert "--release" in err
    code, out, err = call(main, *arguments, "--release", "--yes")
    assert code == 0, err
    assert "not differential privacy" in out
    key = load_identity_key(tmp_path / "identity.pem").public_key()
    (entry,) = verify(tmp_path / "spool" / "audit.jsonl", key=key)
    assert entry.kind == "release"
    assert entry.values["file_hash"] == hashlib.sha256(export.read_bytes()).hexdigest()
    code, _, err = call(main, "report", "--site", site_file, "--out", tmp_path / "q", "--compare", export)
    assert code == 0, err
    assert "st-mary" in (tmp_path / "q" / "quality.html").read_text()


def test_a_release_that_is_not_confirmed_leaves_nothing(call, site_file, tmp_path, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda question: False)
    export = tmp_path / "export.json"
    code, out, _ = call(
        main, "report", "--site", site_file, "--out", tmp_path / "q", "--export", export, "--release"
    )
    assert code == 1
    assert "Nothing was released" in out
    assert not export.exists()
    assert not (tmp_path / "spool" / "audit.jsonl").exists()


@pytest.mark.slow
def test_the_page_renders_in_a_browser(report, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from struct import unpack
    from zlib import decompress

    html = render_quality(suspicious(report))
    # The probe runs only in the test: it writes into the title, which --dump-dom shows, how wide the page is and how
    # much it has asked for.
    probe = (
        "<script>onload=()=>{document.title=document.documentElement.scrollWidth+' of '+innerWidth+', asked '"
        "+performance.getEntriesByType('resource').length}</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(html)
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    probed, breached = tmp_path / "probed.html", tmp_path / "breached.html"
    probed.write_text(bare + probe)
    breached.write_text(bare + "<img src='http://127.0.0.1:9/x.png'><p style='width:3000px'>wide</p>" + probe)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]

    def run(width: int, *arguments: str) -> str:
        command = [chromium, *options, f"--user-data-dir={tmp_path / f'profile-{width}'}"]
        done = subprocess.run(
            [*command, f"--window-size={width},2400", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    def measured(width: int, page: Path) -> tuple[int, int, int]:
        shown = re.search(
            r"<title>(\d+) of (\d+), asked (\d+)</title>", run(width, "--dump-dom", page.as_uri())
        )
        assert shown is not None
        wide, window, asked = map(int, shown.groups())
        return wide, window, asked

    for width in (1200, 600):
        wide, window, asked = measured(width, probed)
        assert wide <= window, f"the page is wider than a window of {width}"
        assert asked == 0
    wide, window, asked = measured(1200, breached)
    assert wide > window, "the probe would notice an overflow"
    assert asked == 1, "the probe would notice a request"
    picture = tmp_path / "page.png"
    run(1200, f"--screenshot={picture}", page.as_uri())
    raw = picture.read_bytes()
    width, height = unpack(">II", raw[16:24])
    assert (width, height) == (1200, 2400)
    parts, place = b"", 8
    while place < len(raw):
        (length,) = unpack(">I", raw[place : place + 4])
        if raw[place + 4 : place + 8] == b"IDAT":
            parts += raw[place + 8 : place + 8 + length]
        place += length + 12
    assert len(set(decompress(parts)[::997])) > 20, "a page of one colour shows nothing"
