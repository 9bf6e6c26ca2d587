"""Compare errors of both access paths by errno."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from imgfs.errors import ImgfsError


@contextmanager
def refused(*codes: int) -> Iterator[None]:
    """Assert that the block fails with one of these errnos."""
    with pytest.raises((OSError, ImgfsError)) as caught:
        yield
    got = errno.errorcode[caught.value.errno or 0]
    assert got in [errno.errorcode[code] for code in codes], str(caught.value)
