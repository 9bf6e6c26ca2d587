"""Refs, the names of unfinished writes: any text of 1 to 255 bytes, and the directory that belongs to it.

Bytes that are not UTF-8 are represented as Python represents them in file names (os.fsdecode). In a file name, `/` is
written `%2F`; nothing else is escaped.
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
    """Return the ref that the file name `name` stands for, with `%2F` decoded to `/`. Raises Invalid."""
    ref = name.replace("%2F", "/")
    try:
        size = len(os.fsencode(ref_name(ref)))
    except UnicodeEncodeError:
        raise Invalid(f"ingest ref {name[:80]!r}: cannot be stored in a file name; choose another name") from None
    if name in (".", "..") or not 0 < size <= REF_BYTES_MAX:
        raise Invalid(f"ingest ref {name[:80]!r}: expected 1 to {REF_BYTES_MAX} bytes, not `.` or `..`")
    if any(unicodedata.category(character) == "Cc" for character in ref):
        raise Invalid(f"ingest ref {name[:80]!r}: contains a control character; choose another name")
    return ref


def ref_name(ref: str) -> str:
    """Return the file name of a ref."""
    return ref.replace("/", "%2F")


def ref_id(ref: str) -> str:
    """Return the name of the directory that holds the bytes of `ref`; it is always the same for the same ref."""
    return hashlib.sha256(os.fsencode(ref)).hexdigest()


def promised_digest(ref: str) -> Digest | None:
    """Return the digest in a ref of the form `<kind>-<digest>`, as containerd's clients write them; None for other
    refs.
    """
    match = _PROMISE.match(ref)
    return Digest(match[1]) if match and is_digest(match[1]) else None
