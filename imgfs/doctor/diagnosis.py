"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warn", "fail"]
"""`fail`: something does not work, such as a mount. `warn`: it works, but something is missing, slow or at risk."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of one subject, and advice unless the grade is ok."""

    subject: str
    grade: Grade
    what: str
    cure: str = ""


def ok(subject: str, what: str) -> Diagnosis:
    """Return the result of a check without findings."""
    return Diagnosis(subject, "ok", what)


def warn(subject: str, what: str, cure: str) -> Diagnosis:
    """Return a finding of a subject that works, with a problem."""
    return Diagnosis(subject, "warn", what, cure)


def fail(subject: str, what: str, cure: str) -> Diagnosis:
    """Return a finding of a subject that does not work."""
    return Diagnosis(subject, "fail", what, cure)


def of_reason(subject: str, reason: str) -> Diagnosis:
    """Split an imgfs error message into problem and advice, and return them as a warning."""
    what, _, cure = reason.rpartition("; ")
    return warn(subject, what or reason, cure if what else "")
