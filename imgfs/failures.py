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
    """What went wrong last, by subject: a digest, an image name, or `images/<host>`."""

    def __init__(self) -> None:
        self._messages: OrderedDict[str, str] = OrderedDict()

    def get(self, subject: str) -> str | None:
        """The sentence, or None if the subject's last operation went well."""
        return self._messages.get(subject)

    @contextmanager
    def noting(self, subject: str) -> Generator[None]:
        """Note what goes wrong inside for `subject` and raise it on, or clear its failure."""
        try:
            yield
        except ImgfsError as error:
            self.note(subject, error)
            raise
        self.clear(subject)

    def note(self, subject: str, error: ImgfsError) -> None:
        """Remember and log that `subject` failed."""
        if self._messages.get(subject) != error.message:
            _log.warning("failed", extra={"subject": subject, "error": error.message, "errno": error.errno})
        self._messages[subject] = error.message
        self._messages.move_to_end(subject)
        while len(self._messages) > _KEPT:
            self._messages.popitem(last=False)

    def clear(self, subject: str) -> None:
        """The subject's last operation went well."""
        self._messages.pop(subject, None)
