"""The last failure of each object, for `user.imgfs.error`, status files and the log. In memory only."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager

from imgfs.errors import ImgfsError

_KEPT = 4096
_log = logging.getLogger("imgfs.failures")


class Failures:
    """The last error message of each subject: a digest, an image name, or `images/<host>`."""

    def __init__(self) -> None:
        self._messages: OrderedDict[str, str] = OrderedDict()

    def get(self, subject: str) -> str | None:
        """Return the error message, or None if the subject's last operation succeeded."""
        return self._messages.get(subject)

    @contextmanager
    def noting(self, subject: str) -> Generator[None]:
        """Note an ImgfsError of the block as the failure of `subject` and reraise it; clear the failure on success."""
        try:
            yield
        except ImgfsError as error:
            self.note(subject, error)
            raise
        self.clear(subject)

    def note(self, subject: str, error: ImgfsError) -> None:
        """Remember the error of `subject`, and log it unless it is the same as before."""
        if self._messages.get(subject) != error.message:
            _log.warning("failed", extra={"subject": subject, "error": error.message, "errno": error.errno})
        self._messages[subject] = error.message
        self._messages.move_to_end(subject)
        while len(self._messages) > _KEPT:
            self._messages.popitem(last=False)

    def clear(self, subject: str) -> None:
        """Forget the failure: the subject's last operation succeeded."""
        self._messages.pop(subject, None)
