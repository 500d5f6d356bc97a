"""Why the proxy's refused requests were refused, told in sentences to the side that can mend it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from common.enrolment import parse_supernode_key, supernode_key_text

AHEAD, BEHIND = 5.0, 305.0
"""Seconds that a SuperNode's clock may be ahead of the server's or behind it (flwr 1.42, node_auth.py)."""

_GATEWAY = (502, 503, 504)
_MOST_BYTES = 1 << 20


class RefusalLog:
    """Reads what is new in the proxy's log of refused requests.

    Args:
        path: The log.
        keys: SuperNode key by site, in OpenSSH format.
    """

    def __init__(self, path: Path, keys: Mapping[str, str]) -> None:
        self._path = path
        self._sites = {key: site for site, key in keys.items()}
        self._at = path.stat().st_size if path.exists() else 0
        self._told: set[str] = set()

    def news(self) -> list[str]:
        """Return the sentences that were not said before."""
        fresh = []
        for entry in self._entries():
            subject, sentence = explain(entry, self._sites)
            if sentence and subject not in self._told:
                self._told.add(subject)
                fresh.append(sentence)
        return fresh

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._at)
            content = log.read(_MOST_BYTES)
        whole = content.rpartition(b"\n")[0]
        # A megabyte without a line break is no log of ours; it is passed over rather than read for ever.
        self._at += len(whole) + 1 if whole else len(content) if len(content) == _MOST_BYTES else 0
        for line in whole.split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def explain(entry: Mapping[str, Any], sites: Mapping[str, str]) -> tuple[str, str]:
    """Return what a refused request is about, and the sentence on it; two empty texts for what is of no interest.

    Args:
        entry: A line of the proxy's log.
        sites: Site by SuperNode key.
    """
    status, origin = entry.get("status"), str(entry.get("from", ""))
    if status in _GATEWAY:
        return "", ""  # The SuperLink was away; the supervisor tells of that.
    if status in (403, 404, 405) and not str(entry.get("path", "")).startswith("/v1/fleet/"):
        return f"path {origin}", (
            f"{origin} asked for a path that is not open to sites; nothing was let through. If it goes on, block the "
            "address."
        )
    site = sites.get(_key(entry))
    if site is None and entry.get("key"):
        return f"key {origin}", (
            f"A SuperNode at {origin} came with a key that is not enrolled in this roster; it was refused. If it is "
            "a member, run 'fedward-server enrol accept' with its request."
        )
    skew = _skew(entry)
    if site is not None and skew is not None and not -AHEAD < skew < BEHIND:
        word = "behind" if skew > 0 else "ahead of"
        return f"clock {site}", (
            f"The clock of {site} is {abs(skew):.0f} s {word} this server's, so its SuperNode was refused; set both "
            "clocks by NTP."
        )
    if status == 413:
        return f"size {origin}", f"{site or origin} sent a request that is too large; it was refused."
    return "", ""


def _key(entry: Mapping[str, Any]) -> str:
    """Return the SuperNode key of a request in OpenSSH format, or an empty text."""
    try:
        key = load_pem_public_key(base64.b64decode(str(entry.get("key", "")), validate=True))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return ""
        text = supernode_key_text(key)
        parse_supernode_key(text)
    except Exception:
        return ""
    return text


def _skew(entry: Mapping[str, Any]) -> float | None:
    """Return how many seconds a request was signed before the proxy saw it; negative if it was after."""
    try:
        seen = datetime.fromisoformat(str(entry["time"]))
        signed = datetime.fromisoformat(str(entry["signed_at"]))
    except (KeyError, ValueError):
        return None
    if signed.tzinfo is None:
        signed = signed.replace(tzinfo=UTC)
    return (seen - signed).total_seconds()
