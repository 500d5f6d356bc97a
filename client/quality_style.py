"""What the quality report's style sheet adds to that of all reports."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
.tiles { grid-template-columns: repeat(7, minmax(0, 1fr)); }
.tile.hero b { font-size: 28px; }
section > .wide, section > .charts { margin-top: 12px; }
@media (max-width: 1000px) { .tiles { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@media (max-width: 560px) { .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
.charts > figure:only-child { max-width: 620px; }
section h3 { margin: 22px 0 8px; font-size: 15px; }
.stays {
  border: 1px solid var(--rule); border-left: 4px solid var(--accent); border-radius: 8px; background: var(--card);
  padding: 10px 16px; color: var(--soft); font-size: 14px;
}
.excerpt { font-size: 13px; overflow-wrap: anywhere; min-width: 260px; }
.excerpt mark { background: var(--warn-page); color: var(--warn-ink); border-radius: 3px; padding: 1px 3px; }
.tag { white-space: nowrap; font-size: 13px; }
"""
