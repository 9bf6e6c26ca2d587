"""The FUSE_INIT handshake with amended flags (structures of linux/fuse.h)."""

from __future__ import annotations

import struct

import pytest

from imgfs.errors import NotPermitted
from imgfs.kernel.fuse import FuseMount, amend_init, open_fuse

PARALLEL = 1 << 18
ACL = 1 << 20


def request(flags: int) -> bytes:
    return bytes(40) + struct.pack("=IIII", 7, 38, 131072, flags)


def answer(flags: int) -> bytes:
    body = struct.pack("=IIIIHHII", 7, 38, 131072, flags, 0, 0, 1 << 20, 1) + bytes(36)
    return struct.pack("=IiQ", 16 + len(body), 0, 99) + body


def test_parallel_lookups_are_enabled_if_the_kernel_offers_them() -> None:
    amended = amend_init(request(PARALLEL | 1), answer(1), max_background=128)
    assert struct.unpack_from("=IIII", amended, 16) == (7, 38, 131072, PARALLEL | 1)
    assert struct.unpack_from("=HH", amended, 32) == (128, 96)


def test_posix_acls_are_enabled_if_the_kernel_offers_them() -> None:
    amended = amend_init(request(ACL), answer(1), max_background=128)
    assert struct.unpack_from("=I", amended, 28)[0] == ACL | 1


def test_flags_that_the_kernel_does_not_offer_are_not_set() -> None:
    amended = amend_init(request(1), answer(1), max_background=128)
    assert struct.unpack_from("=I", amended, 28)[0] == 1


def test_nothing_else_changes() -> None:
    before = answer(5)
    after = amend_init(request(0), before, max_background=0)
    assert after == before


def test_a_refusal_stays_a_refusal() -> None:
    refusal = struct.pack("=IiQ", 16, -71, 99)
    assert amend_init(request(PARALLEL), refusal, max_background=128) == refusal


def test_a_missing_mountpoint_is_reported() -> None:
    with pytest.raises(NotPermitted, match="/nonexistent/mnt: cannot be mounted: No such file"):
        open_fuse("/nonexistent/mnt", FuseMount(others=True, trusted=True))
