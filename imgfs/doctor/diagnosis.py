"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warn", "fail"]
"""`fail`: something does not work, such as a mount. `warn`: it works, but something is missing, slow or at risk."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One subject: its state in a sentence, and what to do unless it is well."""

    subject: str
    grade: Grade
    what: str
    cure: str = ""


def ok(subject: str, what: str) -> Diagnosis:
    """All is well."""
    return Diagnosis(subject, "ok", what)


def warn(subject: str, what: str, cure: str) -> Diagnosis:
    """It works, with a problem."""
    return Diagnosis(subject, "warn", what, cure)


def fail(subject: str, what: str, cure: str) -> Diagnosis:
    """It does not work."""
    return Diagnosis(subject, "fail", what, cure)


def of_reason(subject: str, reason: str) -> Diagnosis:
    """Make a warning of an error message of imgfs, which ends with what to do."""
    what, _, cure = reason.rpartition("; ")
    return warn(subject, what or reason, cure if what else "")
