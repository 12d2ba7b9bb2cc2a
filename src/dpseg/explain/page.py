"""A report on prompts as one HTML page: pictures inlined, no scripts, nothing from elsewhere, for any screen."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from dpseg.explain.gap import KINDS
from dpseg.explain.prompt_report import ClassReport, PictureReport, PromptReport
from dpseg.explain.thumbnails import SHOWN, jpeg, thumbnail

KIND_LABELS = {"text": "by words, T", "visual": "by pictures, V", "dual": "by both, R"}
"""How the kinds of `explain.gap.KINDS` are called."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c20; --faint: #62626a; --paper: #fafaf8; --card: #ffffff; --line: #deded8;
  --warn: #8a4b08; --warn-paper: #fdf1e0; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --faint: #a2a2ac; --paper: #17171a; --card: #212126;
  --line: #3a3a42; --warn: #f3c078; --warn-paper: #33281a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .faint { color: var(--faint); font-size: .875rem; }
.warnings { border-left: .25rem solid var(--warn); background: var(--warn-paper); color: var(--warn); margin: .8rem 0;
  padding: .5rem 1rem .5rem 2rem; overflow-wrap: anywhere; }
.cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; min-width: 0; }
.card .warnings { padding: .4rem .6rem .4rem 1.6rem; font-size: .875rem; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; margin-top: .5rem; }
th, td { text-align: left; font-weight: 400; padding: .2rem .4rem .2rem 0; border-top: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--faint); width: 8.5rem; } td.number { text-align: right; width: 3.5rem; }
td.number, .number { font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .5rem; }
figure { margin: 0; width: 6rem; } figcaption { font-size: .75rem; color: var(--faint); overflow-wrap: anywhere; }
img { width: 6rem; height: 6rem; border-radius: .3rem; display: block; } .odd img { outline: 3px solid var(--warn); }
"""


def html_page(report: PromptReport, title: str) -> bytes:
    """Returns the page, UTF-8.

    Args:
        report: of K classes.
        title: what was looked at.
    """
    by_class: dict[str, list[str]] = {}
    for warning in report.warnings:
        for name in warning.classes:
            by_class.setdefault(name, []).append(warning.text)
    count = len(report.classes)
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="faint">{count} class{"" if count == 1 else "es"}. Numbers are cosines in the joint space, -1 to 1.'
        "</p>",
        _warnings([warning.text for warning in report.warnings]),
        *(f'<p class="faint">{escape(note)}.</p>' for note in report.notes),
        '<main class="cards">',
        *(_card(one, by_class.get(one.name, [])) for one in report.classes),
        "</main>",
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
    )
    return "\n".join([head, *body, "</body></html>\n"]).encode()


def _card(report: ClassReport, warnings: Sequence[str]) -> str:
    """Returns what is shown of one class."""
    rows = []
    if report.agreement is not None:
        rows.append(("its pictures and its words", "", f"{report.agreement:.2f}"))
    for kind in KINDS:
        if kind in report.nearest:
            near = report.nearest[kind]
            rows.append((f"nearest {KIND_LABELS[kind]}", near.name, f"{near.cosine:.2f}"))
    rows += [("in the bank", share.name, f"{share.share:.0%}") for share in report.bank]
    cells = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(name)}</td><td class="number">{value}</td></tr>'
        for label, name, value in rows
    )
    words = ", ".join(report.words) or "no words"
    sources = ", ".join(report.sources)
    return "".join(
        [
            f'<section class="card"><h2>{escape(report.name)}</h2>',
            f'<p class="faint">{escape(words)}{f" · prompts: {escape(sources)}" if sources else ""}</p>',
            _warnings(warnings),
            _pictures(report.pictures),
            f"<table>{cells}</table>" if cells else "",
            "</section>",
        ]
    )


def _pictures(pictures: Sequence[PictureReport]) -> str:
    """Returns the pictures that are at hand, odd ones first, and how many more there are."""
    if not pictures:
        return ""
    figures = []
    for picture in sorted(pictures, key=lambda one: not one.unlike)[:SHOWN]:
        image = thumbnail(picture)
        name = picture.source.replace("\\", "/").rpartition("/")[2] or "a picture"
        facts = [f"words {picture.to_words:.2f}"] if picture.to_words is not None else []
        facts += [f"others {picture.to_others:.2f}"] if picture.to_others is not None else []
        caption = f'<figcaption title="{escape(picture.source)}">{escape(name)}<br><span class="number">'
        caption += f"{'<br>'.join(facts)}</span></figcaption>"
        shown = "" if image is None else f'<img alt="{escape(name)}" src="{_inlined(jpeg(image))}">'
        figures.append(f"<figure{' class=odd' if picture.unlike else ''}>{shown}{caption}</figure>")
    more = f'<p class="faint">and {len(pictures) - SHOWN} more pictures</p>' if len(pictures) > SHOWN else ""
    return f'<div class="pictures">{"".join(figures)}</div>{more}'


def _warnings(texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="warnings">{items}</ul>' if texts else ""


def _inlined(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
