"""Translate between the names in archives and the names below images/."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from imgfs.archives.layout import Listed
from imgfs.cli.failure import Failure
from imgfs.cli.images.lookup import is_digest_like, new_name
from imgfs.errors import Invalid, Malformed
from imgfs.images.names import check_name, is_local_name, reference_of
from imgfs.oci.reference import expand_familiar, is_tag

_LOCAL_HOST = "localhost"
"""The host of local names in a docker-archive. podman uses it, and docker accepts it."""


def names_for(images: list[Listed], name: str | None, *, quiet: bool) -> dict[str, Listed]:
    """Return the images of an archive by the name to register. An image without a usable name is left out.

    `name` is the name of a single image, or the repository of several images with tags. Raises Failure if no image has
    a name, Malformed if two images have the same name, Invalid.
    """
    found: dict[str, Listed] = {}
    for image, chosen in _chosen(images, name, quiet=quiet):
        check_name(chosen)
        if found.setdefault(chosen, image).descriptor.digest != image.descriptor.digest:
            raise Malformed(f"archive: two images are named {chosen}; give a NAME")
    if not found:
        said = ", ".join(raw[:80] for one in images for raw in one.names) or "none"
        raise Failure(f"archive: has no usable name (found: {said}); give one: SOURCE NAME", errno.EINVAL)
    return found


def check_own(name: str) -> None:
    """Raise Failure or Invalid if `name` cannot be the name of an image or a repository."""
    if is_digest_like(name):
        raise Failure(f"{name}: is a digest and cannot be a name; expected host/repository:tag or a word", errno.EINVAL)
    check_name(new_name(name, quiet=True))


def local_name(raw: str) -> str | None:
    """Return the name below images/ for a name in an archive; a word is local, other text is completed. None if bad."""
    if "/" not in raw and ":" not in raw:
        return raw if is_local_name(raw) and _is_name(raw) else None
    try:
        return str(expand_familiar(raw))
    except Invalid:
        return None


def docker_tag(name: str) -> str | None:
    """Return the name as `docker load` reads it, always with a tag. None for `name@digest`."""
    reference = reference_of(name)
    if reference is not None:
        return None if reference.digest else name
    tagged = f"{_LOCAL_HOST}/{name}:latest"
    try:
        expand_familiar(tagged)
    except Invalid:
        return None
    return tagged


def _chosen(images: list[Listed], name: str | None, *, quiet: bool) -> Iterable[tuple[Listed, str]]:
    if name is None:
        return [(one, full) for one in images for raw in one.names if (full := local_name(raw))]
    if len({one.descriptor.digest for one in images}) == 1:
        return [(images[0], new_name(name, quiet=quiet))]
    if ":" in name.rpartition("/")[2] or "@" in name:
        raise Failure(
            f"{name}: the archive has several images; give a repository, the images become its tags", errno.EINVAL
        )
    tagged = [(one, tag) for one in images for raw in one.names if (tag := _tag(raw))]
    return [(one, str(expand_familiar(f"{name}:{tag}"))) for one, tag in tagged]


def _tag(raw: str) -> str | None:
    if is_tag(raw):
        return raw
    try:
        return expand_familiar(raw).tag
    except Invalid:
        return None


def _is_name(raw: str) -> bool:
    try:
        check_name(raw)
    except Invalid:
        return False
    return True
