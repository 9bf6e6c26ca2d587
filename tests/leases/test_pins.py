"""Pins: an operation holds them while it runs, and a collection notes those made meanwhile."""

from __future__ import annotations

import pytest

from imgfs.leases.pins import Pins
from imgfs.leases.resource import content
from imgfs.oci.digest import Digest

ONE, TWO = content(Digest.of(b"1")), content(Digest.of(b"2"))


def test_a_pin_holds_until_the_last_operation_ends() -> None:
    pins = Pins()
    with pins.hold(ONE) as pin:
        pin.add(TWO, ONE)
        with pins.hold(TWO):
            assert set(pins) == {ONE, TWO}
        assert TWO in pins
    assert len(pins) == 0


def test_a_pin_ends_with_an_operation_that_fails() -> None:
    pins = Pins()

    def fail() -> None:
        with pins.hold(ONE):
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert ONE not in pins


def test_only_a_pin_of_an_unpinned_resource_changes_the_version() -> None:
    pins = Pins()
    with pins.hold(ONE):
        before = pins.version
        with pins.hold(ONE):
            assert pins.version == before
        with pins.hold(TWO):
            assert pins.version != before


def test_a_pin_is_noted_even_after_it_was_released() -> None:
    pins = Pins()
    with pins.hold(ONE), pins.noting() as noted, pins.noting() as other:
        assert noted == other == {ONE}
        with pins.hold(TWO):
            pass
    assert noted == other == {ONE, TWO}
    with pins.hold(content(Digest.of(b"3"))):
        assert len(noted) == 2
