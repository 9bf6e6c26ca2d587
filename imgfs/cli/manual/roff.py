"""Text as troff's man macros have it (groff_man(7))."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable

from imgfs import __version__

_WIDTH = 70


def title(page: str, section: int) -> str:
    """The first line of a page."""
    return f'.TH {escaped(page.upper())} {section} "" "imgfs {__version__}" "imgfs manual"'


def heading(page: str, about: str) -> list[str]:
    """The section that says what a page is about, which apropos(1) reads."""
    return [".SH NAME", rf"{escaped(page)} \- {escaped(about.rstrip('.'))}"]


def see_also(*pages: tuple[str, int]) -> list[str]:
    """The section that names other pages."""
    last = len(pages) - 1
    return [
        ".SH SEE ALSO",
        *(f".BR {escaped(page)} ({section}){',' * (at < last)}" for at, (page, section) in enumerate(pages)),
    ]


def tagged(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A list of words in bold, each with its text."""
    lines: list[str] = []
    for tag, text in pairs:
        lines += [".TP", rf"\fB{escaped(tag)}\fR", *_filled(text)]
    return lines


def paragraphs(text: str | None) -> list[str]:
    """Paragraphs with empty lines between them, as docstrings have them, below a heading."""
    first, *others = inspect.cleandoc(text or "").split("\n\n")
    lines = _filled(first)
    for paragraph in others:
        lines += [".PP", *_filled(paragraph)]
    return lines


def example(*lines: str) -> list[str]:
    """Lines as they stand."""
    return [".nf", ".RS", *map(escaped, lines), ".RE", ".fi"]


def _filled(text: str) -> list[str]:
    """Text on lines of a width that people can read."""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [escaped(line) for line in lines]


def escaped(text: str) -> str:
    """Text that troff sets as it stands: no requests, no escapes, and hyphens that can be copied."""
    plain = text.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain
