"""A private registry with a real object storage, which checks signed URLs and accepts no other credential."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.registry import FakeRegistry
from tests.mount.private import PASSWORD, USER, Home, registry_with_passwords
from tests.mount.scene import assert_verified
from tests.mount.test_ingest_crashes import noise
from tests.support.mounted import Mounted
from tests.support.programs import run
from tests.support.proxy import CountingProxy, counting_proxy
from tests.support.seaweedfs import seaweedfs
from tests.support.servers import DockerRegistry, skopeo_push

SIZE = 6 << 20


@dataclass(frozen=True, slots=True)
class Scene:
    """The registry, the counting proxy before its storage, and a mount whose user is logged in."""

    directory: Path
    registry: DockerRegistry
    storage: CountingProxy
    mounted: Mounted


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("seaweedfs")
    with pytest.MonkeyPatch.context() as patch, seaweedfs(directory / "storage") as s3:
        home = Home(directory, patch)
        with counting_proxy(str(s3["regionendpoint"]).removeprefix("http://")) as storage:
            s3 = {**s3, "regionendpoint": f"http://{storage.host}"}
            with registry_with_passwords(directory, s3=s3) as (registry, _), Mounted(directory) as mounted:
                home.log_in(registry.host)
                mounted.start()
                yield Scene(directory, registry, storage, mounted)
                assert_verified(mounted.state)
                assert "X-Amz" not in mounted.log()
                assert "canary" not in mounted.log()


def made(mark: str) -> Image:
    return image([layer([File("noise", noise(mark, SIZE))], "none")], platform=AMD64)


def pushed(scene: Scene, repository: str) -> Image:
    """Push an image with skopeo, which stores its blobs in the object storage, and return the image."""
    built, layout = made(repository), scene.directory / f"layout-{repository}"
    built.write_layout(layout, "1")
    skopeo_push(layout, "1", scene.registry.host, repository, f"{USER}:{PASSWORD}")
    scene.storage.requests.clear()
    return built


def asked(scene: Scene, digest: Digest) -> list[str]:
    """Return the signed URLs of a blob with which redirected clients requested it from the storage."""
    paths = [one.path for one in scene.storage.requests if one.method == "GET" and digest.hex in one.path]
    return [path for path in paths if "X-Amz-Signature=" in path]


def test_a_layer_is_fetched_with_one_signed_url(scene: Scene) -> None:
    built = pushed(scene, "pulled")
    assert (scene.mounted.rootfs(f"{scene.registry.host}/pulled:1") / "noise").read_bytes() == noise("pulled", SIZE)
    assert len(asked(scene, built.layers[0].digest)) == 1


def test_a_second_read_of_a_blob_needs_no_request_to_the_storage(scene: Scene) -> None:
    digest = pushed(scene, "content").layers[0].digest
    (scene.mounted.image(f"{scene.registry.host}/content:1") / "manifest.json").read_bytes()
    for _ in range(2):
        assert Digest.of((scene.mounted.content / digest).read_bytes()) == digest
    assert len(asked(scene, digest)) == 1


def test_a_pushed_image_is_pulled_with_the_same_bytes(scene: Scene, registry: FakeRegistry) -> None:
    built = made("pushed")
    built.add_to(registry, "box", "1")
    target = f"{scene.registry.host}/pushed:1"
    done = scene.mounted.run("push", f"{registry.host}/box:1", target)
    assert done.returncode == 0, done.stderr
    back = scene.directory / "back"
    login = ["--src-tls-verify=false", "--src-creds", f"{USER}:{PASSWORD}"]
    run("skopeo", "--insecure-policy", "copy", "--quiet", *login, f"docker://{target}", f"dir:{back}")
    assert (back / "manifest.json").read_bytes() == built.document
    assert (back / built.layers[0].digest.hex).read_bytes() == built.layers[0].blob
