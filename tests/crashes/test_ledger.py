"""The ledger, which judges all crashes, has its own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crashes.ledger import Ledger, Snapshot

LOOSE = Snapshot("active", None, {"file": b"x"}, loose=True)
SEEN = Snapshot("active", None, {"file": b"x"})


def ledger_with(path: Path, fact: Snapshot) -> Ledger:
    made = Ledger(path)
    with made.doing("write", {"active/a": fact}):
        pass
    return made


def test_a_look_after_a_refusal_syncs_nothing(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path / "journal", LOOSE)
    ledger.judge({"active/a": SEEN}, refused=True)
    ledger.judge({"active/a": Snapshot("active", None, {})}, power_cut=True)


def test_what_was_synced_must_survive_a_power_cut(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path / "journal", SEEN)
    ledger.judge({"active/a": SEEN}, refused=True)
    with pytest.raises(AssertionError, match="promised"):
        ledger.judge({"active/a": Snapshot("active", None, {})}, power_cut=True)
