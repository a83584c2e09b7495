"""A report as one HTML file that needs nothing else: paragraphs, tables, plots. Any bench can write one.

    page = render("Demo", [Paragraph("What was done."), Table(("method", "error"), rows), plot(figure, "Error.")])
    atomic_write_text(path, page)

No template engine: six kinds of block of a few lines each are less than a template, its language and a dependency that
`edgetta prepare` would need for its report. All text is escaped. Plots are inline SVG, pictures are PNG in the page;
nothing is loaded from anywhere, and no script runs.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#9aa5b1", "#5b8def", "#e0a030", "#7a5bbf", "#0f9d78")
"""One colour per method, told apart in greyscale and by the colour-blind; the last is for our own."""


@dataclass(frozen=True)
class Heading:
    """A title between blocks."""

    text: str

    def html(self) -> str:
        return f"<h2>{escape(self.text)}</h2>"


@dataclass(frozen=True)
class Paragraph:
    """Plain words; what stands in backquotes is set as code."""

    text: str

    def html(self) -> str:
        return f"<p>{_words(self.text)}</p>"


Trend = Literal["", "better", "worse"]


def trend(change: float | None) -> Trend:
    """What a figure is that has changed by so much, where more is better."""
    return "" if not change else "better" if change > 0 else "worse"


@dataclass(frozen=True)
class Fact:
    """A figure that matters, and words below it; green where it is better than before, and where it is worse not."""

    figure: str
    words: str
    trend: Trend = ""

    def html(self) -> str:
        kind = f" class={self.trend}" if self.trend else ""
        return f"<div><b{kind}>{escape(self.figure)}</b><span>{_words(self.words)}</span></div>"


@dataclass(frozen=True)
class Facts:
    """A few figures that matter, large."""

    facts: Sequence[Fact]

    def html(self) -> str:
        cards = "".join(fact.html() for fact in self.facts)
        return f'<section class="facts">{cards}</section>'


@dataclass(frozen=True)
class Table:
    """Columns and rows; `left` of the columns hold words, the others numbers; the row numbered `strong` stands out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    left: int = 1
    strong: int | None = None  # a negative number counts from the last

    def html(self) -> str:
        strong = None if self.strong is None else self.strong % max(1, len(self.rows))
        head = "".join(self._cell("th", i, column) for i, column in enumerate(self.columns))
        body = "".join(
            f"<tr{' class=strong' if number == strong else ''}>"
            + "".join(self._cell("td", i, cell) for i, cell in enumerate(row))
            + "</tr>"
            for number, row in enumerate(self.rows)
        )
        caption = f"<caption>{_words(self.caption)}</caption>" if self.caption else ""
        return f"<div class=wide><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

    def _cell(self, tag: str, column: int, value: Any) -> str:
        return f"<{tag}{' class=words' if column < self.left else ''}>{_words(str(value))}</{tag}>"


@dataclass(frozen=True)
class Picture:
    """A drawing or image that is part of the page; made by `plot` and `picture`."""

    markup: str
    caption: str

    def html(self) -> str:
        return f"<figure>{self.markup}<figcaption>{_words(self.caption)}</figcaption></figure>"


Block = Heading | Paragraph | Facts | Table | Picture


def plot(figure: Figure, caption: str) -> Picture:
    """A matplotlib figure as inline SVG; its text stays text. The same figure gives the same bytes."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Identifiers are shared by all drawings of a page: clip paths of one must not be found by another.
    prefix = f"p{abs(hash_of(caption)):x}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return Picture(svg, caption)


def picture(pixels: np.ndarray, caption: str, scale: int = 1) -> Picture:
    """An image, uint8 (H, W, 3), as PNG in the page, each pixel `scale` pixels wide."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = pixels.shape[1] * scale
    return Picture(f'<img alt="{escape(caption)}" width="{width}" src="data:image/png;base64,{data}">', caption)


def render(title: str, blocks: Iterable[Block], subtitle: str = "", foot: str = "") -> str:
    """The whole page."""
    body = "\n".join(block.html() for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n"
        + (f'<p class="subtitle">{_words(subtitle)}</p>\n' if subtitle else "")
        + body
        + (f"\n<footer>{_words(foot)}</footer>" if foot else "")
        + "\n</main></body></html>\n"
    )


def hash_of(text: str) -> int:
    """A number for a text, the same in every process."""
    from zlib import crc32

    return crc32(text.encode())


def _words(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


_STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5d6b7a; --line: #e1e6ec; --own: #0f9d78; --worse: #b3471d;
  --wash: #f5f8fa }
* { box-sizing: border-box }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Arial, sans-serif }
main { max-width: 960px; margin: 0 auto; padding: 40px 24px 64px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px }
h2 { font-size: 20px; margin: 40px 0 8px }
p { max-width: 72ch; margin: 10px 0 }
.subtitle, figcaption, caption, footer { color: var(--soft) }
code { font: 0.9em ui-monospace, Menlo, Consolas, monospace; background: var(--wash); padding: 1px 4px }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 24px 0 }
.facts div { background: var(--wash); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px }
.facts b { display: block; font-size: 19px; white-space: nowrap }
.facts .better { color: var(--own) }
.facts .worse { color: var(--worse) }
.facts span { color: var(--soft); font-size: 14px; line-height: 1.4; display: block }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: 12px 0; font-size: 14.5px; font-variant-numeric: tabular-nums }
caption { caption-side: bottom; text-align: left; padding-top: 8px; font-size: 14px }
th, td { padding: 5px 14px; text-align: right; border-bottom: 1px solid var(--line) }
th { font-weight: 600; border-bottom-width: 2px; white-space: nowrap }
.words { text-align: left; padding-left: 4px }
.strong td { font-weight: 700; background: var(--wash) }
figure { margin: 20px 0; overflow-x: auto }
figure svg { max-width: 100%; height: auto; overflow: visible }
figure img { max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 6px }
figcaption { font-size: 14px; max-width: 72ch }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 13.5px }
@media print { main { max-width: none; padding: 0 } figure, table { break-inside: avoid } }
"""
