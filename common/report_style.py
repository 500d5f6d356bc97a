"""The report's style sheet: one set of colours for the light, one for the dark, and one for paper."""

from __future__ import annotations

from typing import Final

# The series' colours are told apart with any common colour blindness, in this order.
STYLE: Final = """
:root {
  --page: #f6f6f3; --card: #ffffff; --ink: #16191d; --soft: #555b63; --faint: #80868e; --rule: #e3e3de;
  --grid: #ebebe6; --hero: #1c62d1; --missing: #d9a9a4; --accent: #1f6feb; --track: #e9edf3;
  --warn-ink: #6b4300; --warn-page: #fff5df; --warn-rule: #e9b44c;
  --c0: #1f6feb; --c1: #12936b; --c2: #c77700; --c3: #7a4fd0; --c4: #c2405f; --c5: #7d848d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121417; --card: #1a1d21; --ink: #eceef0; --soft: #a9b0b8; --faint: #868d96; --rule: #2c3036;
    --grid: #272b30; --hero: #1d4c94; --missing: #6d4341; --accent: #6aa5ff; --track: #2a3038;
    --warn-ink: #ffd98f; --warn-page: #2d2413; --warn-rule: #8a6420;
    --c0: #6aa5ff; --c1: #3fbf93; --c2: #eda53b; --c3: #ab8cf2; --c4: #ee7f97; --c5: #949ba4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 72px; }
header { margin-bottom: 24px; }
.brand { margin: 0; color: var(--accent); font-weight: 600; font-size: 13px; letter-spacing: .02em; }
h1 { margin: 2px 0 4px; font-size: 32px; line-height: 1.2; letter-spacing: -.015em; overflow-wrap: anywhere; }
.facts { margin: 0; color: var(--soft); }
h2 { margin: 0 0 14px; font-size: 18px; letter-spacing: -.005em; }
section {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 22px 24px;
  margin-top: 16px;
}
section > p { max-width: 75ch; margin: 0; }
.note { color: var(--soft); font-size: 13px; margin-top: 10px !important; max-width: 90ch; }
.warnings {
  background: var(--warn-page); border: 1px solid var(--warn-rule); border-radius: 12px;
  color: var(--warn-ink);
  padding: 14px 20px; margin-bottom: 16px;
}
.warnings ul { margin: 4px 0 0; padding-left: 20px; }
.tiles {
  display: grid; grid-template-columns: minmax(190px, 1.5fr) repeat(5, minmax(120px, 1fr)); gap: 12px;
  margin: 0;
}
.tile {
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 14px 16px;
  display: flex;
  flex-direction: column; justify-content: space-between; gap: 10px;
}
.tile dt { color: var(--soft); font-size: 13px; }
.tile dd { margin: 0; }
.tile b {
  display: block; font-size: 21px; line-height: 1.15; font-weight: 600; font-variant-numeric: tabular-nums;
}
.tile small { color: var(--faint); font-size: 12px; line-height: 1.35; display: block; margin-top: 3px; }
.tile.hero { background: var(--hero); border-color: var(--hero); }
.tile.hero dt, .tile.hero b, .tile.hero small { color: #fff; }
.tile.hero b { font-size: 40px; letter-spacing: -.02em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 8px 12px; text-align: left; border-bottom: 1px solid var(--rule); font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-size: 13px; white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 500; min-width: 90px; }
tr.average > * { color: var(--soft); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.b { width: 24%; min-width: 90px; }
.track { display: block; height: 8px; border-radius: 4px; background: var(--track); overflow: hidden; }
.track span { display: block; height: 100%; border-radius: 4px; background: var(--accent); }
tr.average .track span { background: var(--faint); }
.charts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 26px 32px;
}
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
figcaption { font-weight: 500; font-size: 14px; }
.charts > figure:last-child:nth-child(odd) { grid-column: 1 / -1; }
figure svg { width: 100%; height: auto; display: block; margin-top: auto; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 6px; padding: 0;
  font-size: 13px;
}
.legend li { color: var(--soft); }
.legend li::before {
  content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px;
  background: var(--c);
}
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
.missing { --c: var(--missing); }
.grid { stroke: var(--grid); stroke-width: 1; }
.tick { fill: var(--faint); font-size: 12px; font-variant-numeric: tabular-nums; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.bar { fill: var(--c); }
.dot:hover, .bar:hover { opacity: .75; }
.nothing { color: var(--faint); font-size: 14px; margin: 8px 0; }
details { margin-top: 16px; border-top: 1px solid var(--rule); padding-top: 12px; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; width: fit-content; }
details > :not(summary) { margin-top: 10px; }
pre {
  background: var(--page); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
  overflow-x: auto;
  font: 13px/1.5 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
code {
  font: 13px ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere;
}
.pairs { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 14px; }
.pairs dt { color: var(--soft); }
.pairs dd { margin: 0; }
.unseen {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap;
}
@media (max-width: 900px) {
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile.hero { grid-column: 1 / -1; }
}
@media (max-width: 560px) {
  main { padding: 24px 14px 48px; }
  section { padding: 18px 16px; }
  .tick { font-size: 15px; }
  .b { display: none; }
  .tiles .tile:last-child { grid-column: 1 / -1; }
}
@media print {
  :root { --page: #fff; }
  main { padding: 0; max-width: none; }
  section, .tile, figure, tr { break-inside: avoid; }
}
"""
