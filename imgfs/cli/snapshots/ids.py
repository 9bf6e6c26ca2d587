"""Resolve what users type for a snapshot: an ID as `imgfs snapshot ls` shows it, or an image to use as a parent.

An ID is a chain ID or its prefix, a name, or `active/<key>`.
"""

from __future__ import annotations

import errno
import os

import click
from click.shell_completion import CompletionItem

from imgfs.cli.failure import Failure
from imgfs.cli.images.lookup import ChosenImage, find, is_digest_like
from imgfs.cli.images.waiting import bring
from imgfs.cli.options import complete_name, tree_of
from imgfs.cli.tree import Tree
from imgfs.errors import ImgfsError
from imgfs.filename import with_colons
from imgfs.oci.digest import is_digest
from imgfs.snapshots.ids import ACTIVE, active_id, check_key, check_name

_ACTIVE = f"{ACTIVE}/"


def keys(tree: Tree) -> list[str]:
    """Return the keys of all active snapshots, sorted. Raises OSError."""
    return sorted(os.listdir(tree.snapshot(ACTIVE)))


def own(tree: Tree) -> list[str]:
    """Return the IDs of all users' snapshots, active ones first. Raises OSError."""
    return [*map(active_id, keys(tree)), *(id for id in _listed(tree) if not is_digest(id))]


def chains(tree: Tree) -> list[str]:
    """Return the chain IDs whose layers are all local, sorted. Raises OSError."""
    return [id for id in _listed(tree) if is_digest(id)]


def key_of(text: str) -> str:
    """Return the key of an active snapshot, given as the key or as its ID. Raises Invalid."""
    key = text.removeprefix(_ACTIVE)
    check_key(key)
    return key


def existing(tree: Tree, text: str) -> str:
    """Return the ID of the snapshot that `text` means. Raises Failure if there is none. The ID names one file."""
    id = _whole(tree, text)
    if id is None or not _is_id(id) or not os.path.lexists(tree.snapshot(id)):
        hint = f"did you mean {active_id(text)}?" if text in keys(tree) else "`imgfs snapshot ls -a` lists all"
        raise Failure(f"snapshot {text}: does not exist; {hint}", errno.ENOENT)
    return id


def base(tree: Tree, text: str, *, quiet: bool) -> str:
    """Return the ID of a parent: a snapshot, or else the chain of an image, which is fetched."""
    if text.startswith(_ACTIVE):
        raise Failure(f"snapshot {existing(tree, text)}: is active; commit it before it is a parent", errno.EINVAL)
    id = _whole(tree, text)
    if id is not None and _is_id(id) and os.path.lexists(tree.snapshot(id)):
        return id
    return _chain(tree, find(tree, text, quiet=quiet), quiet=quiet)


def existing_or_image(tree: Tree, text: str, *, quiet: bool) -> str:
    """Return the ID of a snapshot, as `existing` does, or else the chain ID of an image, which is fetched.

    A word without a tag, a host or a slash is an image only if it is registered here, and a digest only if the image is
    known here: they may be mistyped IDs.
    """
    is_known = tree.is_registered(text) or (is_digest(text) and os.path.lexists(tree.image(text)))
    is_image = is_known or (not is_digest_like(text) and any(one in text for one in ":/@"))
    if text.startswith(_ACTIVE) or text in keys(tree) or not is_image:
        return existing(tree, text)
    return base(tree, text, quiet=quiet)


def complete_snapshot(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete IDs. Chain IDs are offered only after their first characters were typed."""
    tree = tree_of(ctx)
    try:
        ids = own(tree) + (chains(tree) if incomplete else [])
    except OSError:
        return []
    return [CompletionItem(id) for id in ids if id.startswith(incomplete)]


def complete_own(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete IDs of users' snapshots."""
    return [item for item in complete_snapshot(ctx, param, incomplete) if not is_digest(item.value)]


def complete_base(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete parents: snapshots that are not active, and image names."""
    ids = [item for item in complete_snapshot(ctx, param, incomplete) if not item.value.startswith(_ACTIVE)]
    return [*ids, *complete_name(ctx, param, incomplete)]


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of snapshots that begin so, and images by name."""
    return [*complete_snapshot(ctx, param, incomplete), *complete_name(ctx, param, incomplete)]


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete keys of active snapshots."""
    try:
        return [CompletionItem(key) for key in keys(tree_of(ctx)) if key.startswith(incomplete)]
    except OSError:
        return []


def _listed(tree: Tree) -> list[str]:
    return sorted(name for name in os.listdir(tree.snapshots) if name != ACTIVE)


def _is_id(text: str) -> bool:
    """Return whether it is the path of a snapshot below snapshots/, and not of another file."""
    try:
        if text.startswith(_ACTIVE):
            check_key(text.removeprefix(_ACTIVE))
        elif not is_digest(with_colons(text)):
            check_name(text)
    except ImgfsError:
        return False
    return True


def _whole(tree: Tree, text: str) -> str | None:
    """Return the chain ID with the prefix `text`, or `text` if it is no prefix of a digest; None without a match."""
    if not is_digest_like(text) or is_digest(text):
        return text
    found = [id for id in chains(tree) if id.startswith(text)]
    if len(found) > 1:
        raise Failure(f"{text}: {len(found)} chain IDs have this prefix; give more digits", errno.EINVAL)
    return found[0] if found else None


def _chain(tree: Tree, found: ChosenImage, *, quiet: bool) -> str:
    """Return the chain ID of an image. Reading the last link to its rootfs fetches the image."""
    chain: list[str] = []

    def resolve() -> None:
        image = tree.image(found.digest)
        link = os.path.dirname(os.path.join(image, os.readlink(f"{image}/rootfs")))
        chain.append(os.path.basename(os.readlink(link)))

    bring(tree, found, resolve, quiet=quiet)
    return chain[0]
