"""`fedward-site report`: look at a site's data, keep the page at the site, and export what the operator releases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from client.keys import load_identity_key
from client.quality import QualityReport, examine
from client.quality_export import export_of
from client.quality_page import render_quality
from client.settings import read_settings
from common.audit_log import AuditLog
from common.errors import DataError, InputError
from common.files import write_private
from common.host import build_encoding
from common.ingestion import read_dataset
from common.plan import Plan, read_plan

PAGE, FACTS = "quality.html", "quality.json"
AUDIT_LOG = "audit.jsonl"
RELEASED = "quality-report"


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """Where a report's data is.

    Attributes:
        site: The site's name.
        data: The folder with the splits.
        plan: The plan, for its schema and encoder.
        spool: The folder of the site's audit log; None where there is no site file, and so no release.
        identity: The file of the site's key.
    """

    site: str
    data: Path
    plan: Plan
    spool: Path | None = None
    identity: Path | None = None


def source_of(site: Path | None, data: Path | None, plan: Path | None) -> ReportSource:
    """Return the source that a site file names, or a folder and a plan.

    Raises:
        InputError: Neither is given, or a file cannot be used.
    """
    if site is not None:
        settings = read_settings(site)
        path = plan or settings.site.plan
        if path is None:
            raise InputError(f"{settings.path}: site.plan is missing; give --plan.")
        return ReportSource(
            site=settings.site.name,
            data=data or settings.site.data,
            plan=read_plan(path),
            spool=settings.site.spool,
            identity=settings.keys.identity,
        )
    if data is None or plan is None:
        raise InputError("Give --site, or --data and --plan.")
    return ReportSource(site=data.absolute().name, data=data, plan=read_plan(plan))


def run_report(
    source: ReportSource,
    *,
    out: Path,
    export: Path | None,
    release: bool,
    confirmed: bool,
    compare: Sequence[Path],
    console: Console,
) -> None:
    """Make the report; with `export`, also what leaves the site, once the operator has released it.

    Args:
        source: The data.
        out: Folder for `quality.html` and `quality.json`, mode 0600; made where it is absent.
        export: File for the export.
        release: Whether the operator releases it.
        confirmed: Do not ask again.
        compare: Exports of other sites, shown beside this one.
        console: Where progress and the summary are shown.

    Raises:
        InputError: A file cannot be used, or an export lacks its release; nothing was exported.
    """
    signer = _require_release(source, export, release)
    others = [_read_export(path) for path in compare]
    with console.status("reading") as status:
        data = read_dataset(
            source.data,
            build_encoding(source.plan).schema,
            required=("train",),
        )
        report = examine(
            source.site,
            data,
            build_encoding(source.plan),
            plan_hash=source.plan.hash,
            on_step=lambda step: status.update(step),
        )
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(out / PAGE, render_quality(report, others=others).encode())
    write_private(out / FACTS, _json(report.facts))
    console.print(_summary(report))
    console.print(
        f"Open {out / PAGE}. It quotes records: it stays at the site.", soft_wrap=True, highlight=False
    )
    if export is not None and signer is not None:
        _release(source, report, export, signer, confirmed=confirmed, console=console)


def _require_release(source: ReportSource, export: Path | None, release: bool) -> tuple[Path, Path] | None:
    """Return spool and key of a site that can sign for an export, or None where nothing is exported."""
    if export is None:
        return None
    if not release:
        raise InputError(
            "--export takes numbers about records out of the site; add --release if you release them."
        )
    if source.spool is None or source.identity is None:
        raise InputError("--export needs --site: the release is signed with the site's key in its audit log.")
    if not export.absolute().parent.is_dir():
        raise InputError(f"{export.absolute().parent} is not a folder; make it first.")
    return source.spool, source.identity


def _release(
    source: ReportSource,
    report: QualityReport,
    export: Path,
    signer: tuple[Path, Path],
    *,
    confirmed: bool,
    console: Console,
) -> None:
    """Show what leaves, ask, sign the release in the audit log, and only then write the file."""
    content = export_of(report.facts)
    raw = _json(content)
    console.print(raw.decode(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"This leaves the site. {content['notice']}", soft_wrap=True, highlight=False)
    if not confirmed and not typer.confirm("Release it?"):
        console.print("Nothing was released.")
        raise typer.Exit(1)
    spool, key = signer
    spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = AuditLog(spool / AUDIT_LOG, key=load_identity_key(key))
    # The log first: what left without a line could not be found, a line without a file does no harm.
    log.append(
        "release",
        what=RELEASED,
        site=source.site,
        plan_hash=source.plan.hash,
        file_hash=hashlib.sha256(raw).hexdigest(),
    )
    write_private(export, raw)
    console.print(f"Released as {export}; the release is in {log.path}.", soft_wrap=True, highlight=False)


def _read_export(path: Path) -> dict[str, Any]:
    """Read another site's export."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fine = content["kind"] == "fedward quality export" and content["version"] == 1
        if not fine or not isinstance(content["labels"]["share_of_shown"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("is not an export of 'fedward-site report'.", path=path) from error
    return dict(content)


def _json(content: Any) -> bytes:
    """Return indented JSON."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _summary(report: QualityReport) -> Table:
    """Return the headline numbers as a table."""
    facts = report.facts
    rows = Table("", "", title=f"{report.site}: data quality", show_header=False)
    for name, part in facts["splits"].items():
        rows.add_row(name, f"{part['notes']} notes, {part['words']} words, {part['mentions']} mentions")
    for name, one in facts["duplicates"].items():
        rows.add_row(f"copies in {name}", f"{one['exact']} exact, {one['near']} near")
    for name, one in facts["leakage"].items():
        rows.add_row(name, f"{one['notes']} notes")
    rows.add_row("labels that look wrong", str(facts["label_check"]["candidates"]))
    rows.add_row("pieces per word", f"{facts['encoder']['pieces_per_word']:.2f}")
    for part in facts["privacy"]:
        rows.add_row(f"{part['unit']}s in train", str(part["units"]))
    return rows
