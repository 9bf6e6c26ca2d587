"""Format text with troff's man macros (groff_man(7))."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable

from imgfs import __version__

_WIDTH = 70


def title(page: str, section: int) -> str:
    """Return the first line of a page."""
    return f'.TH {escaped(page.upper())} {section} "" "imgfs {__version__}" "imgfs manual"'


def heading(page: str, about: str) -> list[str]:
    """Return the section NAME, which apropos(1) reads."""
    return [".SH NAME", rf"{escaped(page)} \- {escaped(about.rstrip('.'))}"]


def see_also(*pages: tuple[str, int]) -> list[str]:
    """Return the section SEE ALSO."""
    last = len(pages) - 1
    return [
        ".SH SEE ALSO",
        *(f".BR {escaped(page)} ({section}){',' * (at < last)}" for at, (page, section) in enumerate(pages)),
    ]


def tagged(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Format a list of bold words, each with its text."""
    lines: list[str] = []
    for tag, text in pairs:
        lines += [".TP", rf"\fB{escaped(tag)}\fR", *_filled(text)]
    return lines


def paragraphs(text: str | None) -> list[str]:
    """Format paragraphs that are separated by empty lines."""
    first, *others = inspect.cleandoc(text or "").split("\n\n")
    lines = _filled(first)
    for paragraph in others:
        lines += [".PP", *_filled(paragraph)]
    return lines


def example(*lines: str) -> list[str]:
    """Format lines verbatim."""
    return [".nf", ".RS", *map(escaped, lines), ".RE", ".fi"]


def _filled(text: str) -> list[str]:
    """Wrap text to readable lines."""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH, break_long_words=False, break_on_hyphens=False)
    return [escaped(line) for line in lines]


def escaped(text: str) -> str:
    """Escape text so that troff prints it verbatim, with hyphens that can be copied."""
    plain = text.replace("\\", r"\e").replace("-", r"\-").replace("~", r"\(ti").replace("^", r"\(ha")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain
