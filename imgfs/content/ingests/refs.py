"""The names of unfinished writes: any ref of 1 to 255 bytes, and the directory where it is found again.

A ref is text; bytes that are no UTF-8 are carried as Python carries them in file names (os.fsdecode). In a file name,
`/` is written `%2F`, and nothing else is escaped.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata

from imgfs.errors import Invalid
from imgfs.oci.digest import Digest, is_digest

REF_BYTES_MAX = 255
_PROMISE = re.compile(r".+?-(sha(?:256|512):[0-9a-f]+)\Z", re.DOTALL)


def parse_ref(name: str) -> str:
    """The ref that a name stands for, `%2F` turned into `/`. Raises Invalid."""
    ref = name.replace("%2F", "/")
    try:
        size = len(os.fsencode(ref_name(ref)))
    except UnicodeEncodeError:
        raise Invalid(f"ingest ref {name[:80]!r}: is no text that a file name can hold") from None
    if name in (".", "..") or not 0 < size <= REF_BYTES_MAX:
        raise Invalid(f"ingest ref {name[:80]!r}: expected 1 to {REF_BYTES_MAX} bytes, and neither `.` nor `..`")
    if any(unicodedata.category(character) == "Cc" for character in ref):
        raise Invalid(f"ingest ref {name[:80]!r}: holds a control character; choose another name")
    return ref


def ref_name(ref: str) -> str:
    """The file name of a ref."""
    return ref.replace("/", "%2F")


def ref_id(ref: str) -> str:
    """The name of the directory that holds a ref's bytes: the same for the same ref, always."""
    return hashlib.sha256(os.fsencode(ref)).hexdigest()


def promised_digest(ref: str) -> Digest | None:
    """The digest that a ref of the form `<kind>-<digest>` promises, as containerd's clients write them."""
    match = _PROMISE.match(ref)
    return Digest(match[1]) if match and is_digest(match[1]) else None
