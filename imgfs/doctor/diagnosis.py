"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "warn", "fail"]
"""`fail`: something does not work, a mount first of all. `warn`: it does, and something is missing, slow or at risk."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing: how it is, in a sentence, and what to do about it unless it is well."""

    subject: str
    grade: Grade
    what: str
    cure: str = ""


def ok(subject: str, what: str) -> Diagnosis:
    """All is well."""
    return Diagnosis(subject, "ok", what)


def warn(subject: str, what: str, cure: str) -> Diagnosis:
    """It works, but."""
    return Diagnosis(subject, "warn", what, cure)


def fail(subject: str, what: str, cure: str) -> Diagnosis:
    """It does not work."""
    return Diagnosis(subject, "fail", what, cure)


def of_reason(subject: str, reason: str) -> Diagnosis:
    """A warning out of one of imgfs's own sentences, which end with what to do."""
    what, _, cure = reason.rpartition("; ")
    return warn(subject, what or reason, cure if what else "")
