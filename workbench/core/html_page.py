"""The frame of a self-contained page: one style for light, dark, narrow and printed, and nothing that asks the network for anything."""

from __future__ import annotations

import html

from workbench.core.plots import colour_variables

_LIGHT = "--paper:#ffffff;--panel:#f6f8fa;--line:#d1d9e0;--good:#1a7f37;--bad:#b42318;--unsure:#7d5a00;--wrong:#ffd8a8;--extra:#b2f2bb;--gone:#ffc9c9;--marked:#1b1f24;"
_DARK = "--paper:#0d1117;--panel:#161b22;--line:#3d444d;--good:#3fb950;--bad:#ff7b72;--unsure:#e3b341;--wrong:#7a4a12;--extra:#1f5c2e;--gone:#7d2a2a;--marked:#ffffff;"
STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}{colour_variables()}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}{colour_variables(dark=True)}}}}}
*{{box-sizing:border-box}}
body{{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:0 auto;padding:1rem;color:var(--ink);background:var(--paper);overflow-wrap:break-word}}
h1{{font-size:1.5rem;line-height:1.25}}h2{{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}}h3{{font-size:1rem;margin:1.4rem 0 .4rem}}
small,.note,.missing{{color:var(--faint);font-size:.88rem}}
code{{font-size:.88em;background:var(--panel);padding:.1em .3em;border-radius:4px;overflow-wrap:anywhere}}
a{{color:var(--series-0)}}
nav a{{margin-right:1em;white-space:nowrap}}
.verdict{{border-left:5px solid var(--unsure);background:var(--panel);padding:.8rem 1rem;border-radius:0 6px 6px 0;margin:1rem 0}}
.verdict.ship{{border-color:var(--good)}}.verdict.none{{border-color:var(--bad)}}
.verdict p{{margin:.2rem 0}}.verdict .first{{font-size:1.15rem;font-weight:600}}.verdict ul{{margin:.4rem 0;padding-left:1.2rem}}
.scroll{{overflow-x:auto;max-width:100%}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.84rem}}
td,th{{padding:.3rem .42rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;vertical-align:top}}
td:first-child,th:first-child{{text-align:left;position:sticky;left:0;background:var(--paper)}}
tr.shipped td{{font-weight:600}}
table.texts td,table.texts th{{text-align:left;white-space:normal;min-width:4.5em}}
.plots{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:1rem;align-items:start}}
svg{{width:100%;height:auto;display:block}}
audio{{height:2rem;width:min(100%,19rem);vertical-align:middle}}
.clip{{border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;margin:.7rem 0;break-inside:avoid}}
.clip header{{display:flex;flex-wrap:wrap;gap:.2rem .9rem;align-items:center;font-size:.88rem}}
.aligned{{display:flex;flex-wrap:wrap;gap:.25rem .1rem;margin:.5rem 0;font-size:.92rem}}
.aligned>span{{display:flex;flex-direction:column}}.aligned i{{font-style:normal;padding:0 .25em;min-height:1.5em;white-space:nowrap}}
.aligned .names i{{color:var(--faint);padding-right:.8em}}
.aligned .long i{{white-space:normal;max-width:16em}}
.aligned i:first-child{{border-bottom:1px solid var(--line)}}
.substitution,.insertion,.deletion{{color:var(--marked);border-radius:3px}}
.substitution{{background:var(--wrong);text-decoration:underline}}.insertion{{background:var(--extra)}}.deletion{{background:var(--gone)}}
details{{font-size:.88rem}}summary{{cursor:pointer;color:var(--faint)}}
@media (max-width:500px){{body{{padding:.7rem;font-size:14px}}h1{{font-size:1.25rem}}td,th{{padding:.25rem .4rem}}}}
@media print{{body{{max-width:none;font-size:11px}}audio,nav{{display:none}}.scroll{{overflow:visible}}table{{font-size:8px}}td,th{{padding:.1rem .25rem;white-space:normal}}
svg,.verdict,tr{{break-inside:avoid}}.plots{{grid-template-columns:repeat(3,1fr)}}}}
"""
# no script runs and nothing is fetched, whatever stands in a page: the browser refuses both
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:"


def html_page(title: str, body: str) -> str:
    """A whole page. `title` is text; `body` is HTML in which all text from outside is escaped."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def html_table(head: tuple[str, ...], rows: list[tuple[str, ...]], shipped: frozenset[int] = frozenset()) -> str:
    """A table of texts, which are escaped; the rows numbered in `shipped` stand out. It scrolls where it is too wide."""

    def cells(row: tuple[str, ...], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    body = "".join(
        f"<tr{' class=shipped' if number in shipped else ''}>{cells(row, 'td')}</tr>" for number, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><tr>{cells(head, "th")}</tr>{body}</table></div>'
