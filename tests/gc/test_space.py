"""The numbers that df shows: the disk, limited by the quota and by the space to keep free."""

from __future__ import annotations

import os

import pytest

from imgfs.gc.space import DiskSpace, SpaceLimits, space_of

BLOCK = 1024
DISK = os.statvfs_result((4096, BLOCK, 1000, 400, 350, 77, 33, 30, 0, 255))
"""1000 KiB, 400 of them free, 350 for users."""


@pytest.mark.parametrize(
    ("limits", "used", "total", "free", "available"),
    [
        pytest.param(SpaceLimits(), 0, 1000, 400, 350, id="the disk itself"),
        pytest.param(SpaceLimits(free=100 * BLOCK), 0, 1000, 400, 250, id="kept free in bytes"),
        pytest.param(SpaceLimits(free_percent=20), 0, 1000, 400, 150, id="kept free as a share"),
        pytest.param(SpaceLimits(free_percent=90), 0, 1000, 400, 0, id="less free than the limit"),
        pytest.param(SpaceLimits(quota=500 * BLOCK), 200 * BLOCK, 500, 300, 300, id="a quota"),
        pytest.param(
            SpaceLimits(quota=500 * BLOCK), 200 * BLOCK + 1, 500, 299, 299, id="a partly used block counts as used"
        ),
        pytest.param(
            SpaceLimits(quota=900 * BLOCK), 200 * BLOCK, 900, 700, 350, id="a quota that the disk cannot hold"
        ),
        pytest.param(SpaceLimits(quota=5000 * BLOCK), 200 * BLOCK, 1000, 800, 350, id="a quota larger than the disk"),
        pytest.param(SpaceLimits(quota=500 * BLOCK), 600 * BLOCK, 500, 0, 0, id="an exceeded quota"),
        pytest.param(SpaceLimits(quota=500 * BLOCK, free=300 * BLOCK), 0, 500, 500, 50, id="a quota and a free limit"),
    ],
)
def test_df_reports_the_disk_and_the_limits(
    limits: SpaceLimits, used: int, total: int, free: int, available: int
) -> None:
    assert space_of(DISK, limits, used) == DiskSpace(BLOCK, total, free, available, 77, 33)
