"""Registries that redirect to object storage: signed URLs expire, and the storage must never receive a credential."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from tests.mount.private import Home, push, registry_with_passwords
from tests.mount.scene import CONFIG, assert_verified, error_of, refused, until
from tests.mount.test_ingest_crashes import noise
from tests.support.mounted import Mounted
from tests.support.nginx import nginx
from tests.support.object_storage import ObjectStorage, object_storage

SIZE = 3 << 20
CUT = 1_000_000


@dataclass(frozen=True, slots=True)
class Scene:
    """A mount, a registry that requires tokens, and the object storage to which the registry redirects."""

    mounted: Mounted
    registry: FakeRegistry
    storage: ObjectStorage

    def serve(
        self, repository: str, seconds: tuple[int, ...] = (), revoking: bool = False
    ) -> tuple[Image, bytes, Path]:
        """Put an image with one layer in the storage. Return the image, the content of its file, and its name.

        Each signed URL takes its lifetime from the next item of `seconds`, and lasts one minute when no item is left.
        With `revoking` the registry revokes its tokens after each redirect.
        """
        data = noise(repository, SIZE)
        made = image([layer([File("noise", data)], "none")], platform=AMD64)
        made.add_to(self.registry, repository, "1")
        digest, left = made.layers[0].digest, list(seconds)
        self.storage.objects[digest] = made.layers[0].blob

        def redirecting(reply: Reply) -> Reply:
            if reply.status not in {200, 206}:
                return reply
            if revoking:
                self.registry.revoke()
            return Reply(307).headed(Location=self.storage.sign(digest, left.pop(0) if left else 60))

        self.registry.fault(redirecting, digest, times=None)
        return made, data, self.mounted.image(f"{self.registry.host}/{repository}:1")

    def asked(self, digest: Digest) -> list[tuple[int, str | None]]:
        """Return the status and the Range of each request for a blob that the storage received."""
        return [(one.status, one.range) for one in self.storage.asked if one.key == digest]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("storage")
    with FakeRegistry(token=True) as registry, object_storage() as storage, Mounted(directory, CONFIG) as mounted:
        mounted.start()
        yield Scene(mounted, registry, storage)
        assert_verified(mounted.state)
        assert "X-Amz" not in mounted.log()
        assert "canary" not in mounted.log()
        assert {"authorization", "cookie"} & {name for one in storage.asked for name in one.headers} == set()


def test_the_storage_serves_a_layer_and_receives_no_token(scene: Scene) -> None:
    made, data, name = scene.serve("plain")
    assert (name / "rootfs/noise").read_bytes() == data
    assert scene.asked(made.layers[0].digest) == [(200, None)]
    assert "authorization" in next(one for one in scene.registry.log if made.layers[0].digest in one.path).headers


@pytest.mark.parametrize("as_content", [False, True])
def test_a_url_that_expires_during_a_transfer_is_requested_again(scene: Scene, as_content: bool) -> None:
    made, data, name = scene.serve(f"middle-{int(as_content)}")
    digest = made.layers[0].digest
    assert name.exists()
    scene.storage.cuts, scene.storage.expires_while_read = [CUT], True
    try:
        if as_content:
            assert (name / "layers/0").read_bytes() == made.layers[0].blob
        else:
            assert (name / "rootfs/noise").read_bytes() == data
    finally:
        scene.storage.expires_while_read = False
    assert scene.asked(digest) == [(200, None), (206, f"bytes={CUT}-{len(made.layers[0].blob) - 1}")]


def test_a_token_and_a_url_that_expire_during_a_transfer_are_both_requested_again(scene: Scene) -> None:
    made, data, name = scene.serve("both", revoking=True)
    assert name.exists()
    scene.storage.cuts, scene.storage.expires_while_read = [CUT], True
    before = scene.registry.requests("token")
    try:
        assert (name / "rootfs/noise").read_bytes() == data
    finally:
        scene.storage.expires_while_read = False
    assert [status for status, _ in scene.asked(made.layers[0].digest)] == [200, 206]
    assert scene.registry.requests("token") > before


def test_a_url_that_is_already_expired_is_requested_again_once(scene: Scene) -> None:
    made, data, name = scene.serve("stale", seconds=(-1,))
    assert (name / "rootfs/noise").read_bytes() == data
    assert [status for status, _ in scene.asked(made.layers[0].digest)] == [403, 200]


def test_two_expired_urls_are_an_error_that_names_the_clock(scene: Scene) -> None:
    made, data, name = scene.serve("clock", seconds=(-1, -1))
    with refused(errno.EACCES):
        (name / "rootfs/noise").read_bytes()
    told = error_of(scene.mounted.content / made.layers[0].digest)
    assert f"sent imgfs to {scene.storage.authority}, which answered 403, twice; check the clock" in told
    assert "X-Amz" not in told
    assert until((name / "rootfs/noise").read_bytes) == data


def test_a_blob_that_the_storage_lost_is_not_enoent(scene: Scene) -> None:
    made, data, name = scene.serve("lost")
    digest = made.layers[0].digest
    blob = scene.storage.objects.pop(digest)
    with refused(errno.EREMOTEIO):
        (name / "rootfs/noise").read_bytes()
    assert f"{scene.storage.authority}, which answered 404" in error_of(scene.mounted.content / digest)
    scene.storage.objects[digest] = blob
    assert until((name / "rootfs/noise").read_bytes) == data


def test_a_real_registry_redirects_to_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docker-registry requires a password and redirects to nginx, which refuses requests with a credential."""
    home, data = Home(tmp_path, monkeypatch), tmp_path / "registry/data"
    location = f"root {data}; if ($http_authorization) {{ return 400; }}"
    with (
        nginx(tmp_path / "nginx", location) as storage,
        registry_with_passwords(tmp_path, redirect=f"http://{storage.authority}") as (registry, _),
        Mounted(tmp_path, CONFIG) as mounted,
    ):
        mounted.start()
        made = push(tmp_path, registry, "box", "one")
        home.log_in(registry.host)
        assert (mounted.rootfs(f"{registry.host}/box:1") / "mark").read_bytes() == b"one\n"
        hexes = {made.layers[0].digest.hex, Digest.of(made.config).hex}
        until(lambda: all(any(one in line and " 200 " in line for line in storage.requests()) for one in hexes))
