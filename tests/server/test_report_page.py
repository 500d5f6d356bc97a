"""The page is self-contained, well-formed, escaped, and tells the truth about privacy."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from common.accounting import Epsilon
from server.report_page import render_report
from server.reporting import RunReport, installed_versions

SITES = ["st-mary", "northgate", "riverside", "uni-clinic"]
VOID = {"meta"}


def scores(precision: float, recall: float, support: int) -> dict[str, float]:
    f1 = 2 * precision * recall / (precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def row(number: int) -> dict[str, Any]:
    reached = 0.86 * (1 - math.exp(-number / 2.6))
    return {
        "round": number,
        "sites": SITES[:3] if number in (4, 9) else SITES,
        "cohort": 4,
        "attempts": 1,
        "train_loss": 0.9 * math.exp(-number / 3) + 0.06,
        "devel": {
            "micro": scores(reached + 0.02, reached - 0.03, 900),
            "per_entity": {
                "Disease": scores(reached, reached, 500),
                "Dose": scores(reached, reached / 2, 400),
            },
        },
        "seconds": 52.5,
        "seconds_by_stage": {"train": 42.0, "share_keys": 0.6, "upload": 3.1, "unmask": 1.1, "evaluate": 5.7},
    }


def report(**changes: Any) -> RunReport:
    values: dict[str, Any] = {
        "name": "demo",
        "run_id": "5f0c7c1e2d",
        "evaluation": {
            "micro": scores(0.861, 0.842, 1987),
            "macro": scores(0.80, 0.77, 1987),
            "weighted": scores(0.86, 0.84, 1987),
            "per_entity": {"Disease": scores(0.88, 0.86, 1285), "Dose": scores(0.72, 0.66, 702)},
            "token": {"O": scores(0.99, 0.992, 40211), "B-Dose": scores(0.9, 0.87, 702)},
        },
        "history": [row(number) for number in range(1, 13)],
        "planned_rounds": 12,
        "sites": SITES,
        "privacy": {
            site: Epsilon(epsilon=epsilon, delta=1e-5, unit="patient", method="prv")
            for site, epsilon in zip(SITES, (5.911, 6.02, 5.77, 6.35), strict=True)
        },
        "secure_aggregation": True,
        "threshold": 3,
        "plan_text": '[task]\nentity_types = ["Disease", "Dose"]\n',
        "plan_hash": "9f" * 32,
        "seed": 7,
        "seconds": 742.3,
        "finished_at": "2026-11-24T19:50:00+00:00",
        "chosen_round": 11,
        "versions": installed_versions(),
        "warnings": ["Isolation is off at riverside: agent and SuperNode run as one user."],
    }
    return RunReport(**{**values, **changes})


class Page(HTMLParser):
    """Reads a page: every tag must be closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_page_tells_all_of_the_run():
    text = Page(render_report(report())).text
    for told in (
        "Micro F1 0.8514",
        "strict, on test, round 11",
        "4 sites · 12 of 12 rounds · 12 min 22 s",
        "Isolation is off at riverside",
        "Disease 0.8800 0.8600",
        "micro average",
        "By token, O included",
        "F1 by entity on devel",
        "Training loss",
        "4 sites shared keys in each round. Between 3 and 4 sites were in the sum",
        "A sum opens with at least 3 sites.",
        "9f" * 32,
        'entity_types = ["Disease", "Dose"]',
        "torch",
        "share keys 7.2 s",
    ):
        assert told in text, told


def test_every_epsilon_has_its_delta_unit_and_relation():
    text = Page(render_report(report())).text
    assert "Privacy ε 6.35 δ 10⁻⁵, per patient" in text
    assert "st-mary 5.92 10⁻⁵ patient add-or-remove-one patient prv" in text, "rounded up, never down"
    assert "at every site the bounds add up: ε 24.06 at δ 4·10⁻⁵" in text


def test_a_run_that_is_not_private_says_so():
    text = Page(render_report(report(privacy={}, secure_aggregation=False))).text
    assert "Privacy not private" in text
    assert "may reveal what single records contain" in text
    assert "the server saw every site's update by itself" in text
    assert "ε" not in text


def test_one_site_without_privacy_is_not_hidden_behind_the_others():
    private = dict(report().privacy)
    del private["northgate"]
    text = Page(render_report(report(privacy=private))).text
    assert "Privacy in part 3 of 4 sites" in text
    assert "northgate not private" in text


def test_a_bound_that_is_not_finite_is_shown_as_such():
    privacy = dict(report().privacy)
    privacy["riverside"] = Epsilon(epsilon=math.inf, delta=1e-5, unit="patient", method="rdp")
    text = Page(render_report(report(privacy=privacy))).text
    assert "riverside ∞" in text
    assert "Privacy ε ∞" in text


def test_the_page_fetches_and_runs_nothing():
    html = render_report(report())
    page = Page(html)
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not [
        name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")
    ]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not re.search(r"https?://", html)


def test_light_and_dark_and_paper_are_styled():
    html = render_report(report())
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html
    style = html[html.index("<style>") : html.index("</style>")]
    defined = set(re.findall(r"(--\w+):", style))
    assert set(re.findall(r"var\((--\w+)\)", style)) <= defined
    dark = style[style.index("prefers-color-scheme: dark") :]
    light = style[: style.index("@media (prefers")]
    assert set(re.findall(r"(--\w+):", dark.split("}")[0])) == set(re.findall(r"(--\w+):", light))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "<script>alert(1)</script>"},
        {"warnings": ["<script>alert(1)</script>"]},
        {"plan_text": "# <script>alert(1)</script>"},
        {"sites": ["<script>alert(1)</script>"]},
        {"versions": {"<script>alert(1)</script>": "1"}},
        {"finished_at": "<script>alert(1)</script>"},
        {"evaluated_on": "<script>alert(1)</script>"},
        {
            "evaluation": {
                "micro": scores(1, 1, 1),
                "per_entity": {"<script>alert(1)</script>": scores(1, 1, 1)},
            }
        },
        {"history": [{"round": 1, "seconds_by_stage": {"<script>alert(1)</script>": 1.0, "b": 1.0}}]},
    ],
)
def test_texts_are_escaped(changes):
    html = render_report(report(**changes))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    Page(html)


@pytest.mark.parametrize(
    "changes",
    [
        {"history": []},
        {"history": [{"round": 1}]},
        {"history": [row(number) for number in range(1, 201)]},
        {"evaluation": {}},
        {"history": [{"round": 1, "sites": [], "devel": None, "train_loss": None, "seconds_by_stage": {}}]},
    ],
)
def test_a_run_that_ended_early_or_late_has_a_page_too(changes):
    Page(render_report(report(**changes)))


def test_a_score_that_is_not_a_number_is_a_dash():
    micro = {**scores(0.5, 0.5, 1), "f1": math.nan}
    text = Page(render_report(report(evaluation={"micro": micro, "per_entity": {}}))).text
    assert "Micro F1 –" in text
