"""A push includes blobs that the image's own locations deliver, and no blobs that only other images have."""

from __future__ import annotations

import pytest

from imgfs.errors import NotFound, RegistryFailed
from imgfs.oci.digest import Digest
from imgfs.testing.build import AMD64, Image, image, index
from imgfs.testing.faults import status
from imgfs.testing.uploads import PushRegistry
from tests.transfer.outward import TARGET, Outward, two_layers

SECRET, GREEDY = "corp/secret", "greedy/app"


async def greedy(outward: Outward, has: bool, of_config: bool = False) -> tuple[Digest, Digest]:
    """Return a stored image that lists a layer or the config of a private image, and that digest.

    `has`: whether its own repository has the blob too.
    """
    secret = two_layers("secret")
    await outward.scene.resolved(secret, repository=SECRET)
    own = two_layers("greedy")
    made = Image(own.media_type, secret.document.replace(b"}", b" }", 1), AMD64, secret.config, secret.layers)
    if not of_config:
        made = image([*own.layers, secret.layers[0]])
    wanted = Digest.of(made.config) if of_config else secret.layers[0].digest
    digest = await outward.scene.resolved(made, repository=GREEDY)
    if not has:
        outward.source.repositories[GREEDY].discard(wanted)
    outward.source.reset()
    return digest, wanted


def present(registry: PushRegistry, wanted: Digest) -> bytes:
    """Return the bytes from the repository that owns them."""
    data = registry.blob(SECRET, wanted)
    assert data is not None
    return data


@pytest.mark.parametrize("of_config", [False, True])
@pytest.mark.parametrize("is_stored", [False, True])
async def test_an_image_takes_nothing_along_that_only_others_have(
    within: Outward, is_stored: bool, of_config: bool
) -> None:
    digest, wanted = await greedy(within, has=False, of_config=of_config)
    if is_stored:
        await within.scene.content.add(wanted, present(within.source, wanted))
    with pytest.raises(NotFound, match=f"{wanted} is not pushed: .*404.*{SECRET}"):
        await within.push(digest)
    assert within.source.blob(TARGET, wanted) is None
    assert within.source.manifest(TARGET, "1") is None
    assert not [one for one in within.source.log if SECRET in one.path]


async def test_what_its_own_registry_has_goes_along_by_mount_also_from_others(within: Outward) -> None:
    digest, shared = await greedy(within, has=True)
    report = await within.push(digest)
    assert {part.digest: part.outcome for part in report.parts}[shared] == "mounted"
    asked = [one for one in within.source.log if one.method == "GET" and shared in one.path]
    assert [one.headers["range"] for one in asked] == ["bytes=0-0"]
    assert within.source.manifest(TARGET, "1") is not None


async def test_what_was_brought_here_by_hand_is_the_user_s(within: Outward) -> None:
    secret = two_layers("secret")
    await within.scene.resolved(secret, repository=SECRET)
    digest = await within.stored(image([*two_layers("own").layers, secret.layers[0]]))
    report = await within.push(digest)
    assert {part.digest: part.outcome for part in report.parts}[secret.layers[0].digest] == "mounted"


async def test_an_index_takes_no_manifest_along_that_only_others_have(within: Outward) -> None:
    secret, own = two_layers("secret"), two_layers("own")
    await within.scene.resolved(secret, repository=SECRET)
    digest = await within.scene.resolved(index([own, secret]), repository=GREEDY)
    within.source.repositories[GREEDY].discard(secret.digest)
    with pytest.raises(NotFound, match=f"{secret.digest} is not pushed"):
        await within.push(digest, all_platforms=True)
    assert within.source.manifest(TARGET, secret.digest) is None


async def test_an_origin_that_does_not_answer_proves_nothing(outward: Outward) -> None:
    digest, wanted = await greedy(outward, has=True)
    await outward.scene.content.add(wanted, present(outward.source, wanted))
    outward.source.fault(status(500), f"GET .*/blobs/{wanted}", times=None)
    with pytest.raises(RegistryFailed, match=f"{wanted} is not pushed"):
        await outward.push(digest)
    assert outward.target.blob(TARGET, wanted) is None
