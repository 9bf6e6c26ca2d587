"""Write metrics in Prometheus's text exposition format 0.0.4."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imgfs.metrics.family import Family, number

_IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def render(families: Iterable[Family]) -> str:
    """Return the text of `families`, each with its HELP and TYPE lines. Label values may be any text."""
    return "".join(f"{line}\n" for family in families for line in _lines(family))


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help.translate(_IN_HELP)}"
    yield f"# TYPE {family.name} {family.kind}"
    for sample in family.samples:
        said = ",".join(f'{name}="{text.translate(_IN_LABEL)}"' for name, text in sample.labels)
        yield f"{family.name}{sample.suffix}{f'{{{said}}}' if said else ''} {number(sample.value)}"
