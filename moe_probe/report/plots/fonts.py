"""Fonts of figures: texts are set in fonts that have all of their characters, where such are installed."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager, ttfFontProperty
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from moe_probe.report.plots.style import FILES, METADATA

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase

#: How matplotlib's own warning begins.
_GLYPH = r"Glyph \d+ .* missing from"
#: Fonts that are tried first for characters that the figure's own font lacks; then any that is installed.
_FIRST = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Naskh Arabic",
    "Noto Sans Arabic",
    "Amiri",
    "Geeza Pro",
    "Segoe UI",
    "Arial Unicode MS",
    "Noto Emoji",
    "Symbola",
    "Segoe UI Emoji",
    "Segoe UI Symbol",
)


class FontWarning(UserWarning):
    """No installed font has some characters of a figure."""


class FittedFigure(Figure):
    """A figure that chooses the fonts of its texts before every drawing, and whose files are the same for equal figures."""

    def draw(self, renderer: RendererBase) -> None:
        """Choose fonts, then draw."""
        fit_fonts(self)
        with quiet_glyphs():
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """Save as any matplotlib figure; letters stay letters in SVG and PDF, and files have no date inside.

        Parameters
        ----------
        fname : str, Path or binary file
        **options
            Of `matplotlib.figure.Figure.savefig`.
        """
        kind = str(options.get("format") or Path(str(fname)).suffix.lstrip(".") or rcParams["savefig.format"]).lower()
        plain = {"metadata": METADATA[kind]} if kind in METADATA else {}
        with rc_context(FILES), quiet_glyphs():
            super().savefig(fname, **{**plain, **options})


def fit_fonts(figure: Figure) -> None:
    """Give texts fonts that have all of their characters, behind the font that they are set in.

    Warns once for a script for which no font is installed. Call it before drawing where a plot was drawn on Axes of your own;
    figures that plot functions make themselves do so.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        characters = {c for c in text.get_text() if not c.isascii() and c.isprintable()}
        if not characters:
            continue
        families = list(text.get_fontfamily())
        missing = characters - _characters_of(tuple(families))
        more = {character: name for character in missing if (name := font_with(character)) is not None}
        if more:
            text.set_fontfamily([*families, *dict.fromkeys(more[c] for c in sorted(more))])
        for character in sorted(missing - set(more)):
            _warn(_script(character))


@contextmanager
def quiet_glyphs() -> Iterator[None]:
    """Keep matplotlib from naming every character that no font has: `fit_fonts` warns once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_GLYPH)
        yield


@cache
def _warn(script: str) -> None:
    warnings.warn(
        f"Figures show boxes in place of {script}: no installed font has their outlines. Install one (on Debian and "
        "Ubuntu: apt-get install fonts-noto-cjk fonts-noto-core fonts-symbola), then draw the figures again.",
        FontWarning,
        stacklevel=2,
    )


def _script(character: str) -> str:
    kind = unicodedata.name(character, "").split(" ")[0].title()
    if unicodedata.category(character).startswith("S"):
        return "emoji and symbols"
    return f"{({'Cjk': 'Chinese'}.get(kind, kind)) or 'unnamed'} characters"


@cache
def _characters_of(families: tuple[str, ...]) -> frozenset[str]:
    return _covered(findfont(FontProperties(family=list(families))))


@cache
def _covered(path: str) -> frozenset[str]:
    """Characters of a font that can be drawn at any size; fonts of pictures have none."""
    try:
        font = FT2Font(path)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError):  # a damaged font is as good as none
        return frozenset()


@cache
def font_with(character: str) -> str | None:
    """Name of an installed font that has a character; None where there is none."""
    fonts = sorted(
        (f for f in _installed() if not f.name.startswith("Last Resort")),  # which has a box for everything
        key=lambda f: (
            f.name not in _FIRST,
            _FIRST.index(f.name) if f.name in _FIRST else 0,
            f.style != "normal",
            abs(_weight(f.weight) - 400),
            f.name,
        ),
    )
    seen = set()
    for font in fonts:
        if font.name not in seen and character in _covered(font.fname):
            if font not in fontManager.ttflist:
                fontManager.addfont(font.fname)
            return str(font.name)
        seen.add(font.name)
    return None


def _weight(value: Any) -> int:
    return value if isinstance(value, int) else {"bold": 700, "light": 300}.get(str(value), 400)


@cache
def _installed() -> tuple[Any, ...]:
    """Fonts on this machine: those that matplotlib remembers, and those that came since."""
    known = {font.fname for font in fontManager.ttflist}
    new = []
    for path in sorted(set(findSystemFonts()) - known):
        try:
            new.append(ttfFontProperty(FT2Font(path)))
        except (OSError, RuntimeError, NotImplementedError, KeyError):
            continue  # not a font that matplotlib can read: bitmaps, unknown tables, no permission; others may have the letters
    return (*fontManager.ttflist, *new)
