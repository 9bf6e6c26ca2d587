"""images/<digest>/: exact documents, links to layers and rootfs, other platforms, and the status files."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator

import pytest

from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.digest import Digest
from imgfs.oci.platform import Platform
from imgfs.testing.build import AMD64, ARM64, BuiltIndex, attestation, image, index
from imgfs.testing.faults import cut_at, stall, status
from tests.mount.scene import Scene, marked_layer, refused, serving, small, status_of, succeed, until

ARM7 = Platform("linux", "arm", "v7")
STATES = {"local", "absent", "loading", "failed"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("image")) as made:
        yield made


def multi(mark: str) -> BuiltIndex:
    """An index of three platforms and an attestation, as build tools push it."""
    images = [image([marked_layer(f"{mark} {one}")], platform=one) for one in (AMD64, ARM64, ARM7)]
    return index([*images, attestation(images[0])])


def test_documents_are_the_exact_bytes(scene: Scene) -> None:
    made = multi("exact")
    name = scene.serve(made, "exact")
    assert (name / "index.json").read_bytes() == made.document
    assert (name / "manifest.json").read_bytes() == made.images[0].document
    assert (name / "config.json").read_bytes() == made.images[0].config
    assert os.stat(name / "index.json").st_size == len(made.document)


def test_config_needs_no_layer(scene: Scene) -> None:
    made = small("config")
    name = scene.serve(made, "config")
    with scene.requests("manifest", "blob"):
        assert (name / "config.json").read_bytes() == made.config
    assert scene.registry.log[-1].path.endswith(Digest.of(made.config))


def test_listing_is_complete_before_anything_is_read(scene: Scene) -> None:
    made = small("listing", layers=3)
    name = scene.serve(made, "listing")
    os.stat(name)
    with scene.silence():
        listed = ["config.json", "layers", "manifest.json", "referrers", "rootfs", "status", "status.json"]
        assert sorted(os.listdir(name)) == listed
        assert sorted(os.listdir(name / "layers")) == ["0", "1", "2"]
        assert os.stat(name / "config.json").st_size == len(made.config)


def test_a_single_image_has_no_index(scene: Scene) -> None:
    name = scene.serve(small("single"), "single")
    for absent in ("index.json", "platforms", "nonsense"):
        with refused(errno.ENOENT):
            os.stat(name / absent)


def test_layers_are_links_to_content_base_first(scene: Scene) -> None:
    made = small("layers", layers=3)
    name = scene.serve(made, "layers")
    os.stat(name)
    for number, one in enumerate(made.layers):
        link = scene.directory(made.digest) / "layers" / str(number)
        assert os.readlink(link) == f"../../../content/{one.digest}"
        assert (name / "layers" / str(number)).read_bytes() == one.blob
    with refused(errno.ENOENT):
        os.stat(name / "layers/3")


def test_rootfs_is_a_link_that_names_image_and_platform(scene: Scene) -> None:
    made = small("rootfs")
    name = scene.serve(made, "rootfs")
    os.stat(name)
    with scene.silence():
        assert os.readlink(name / "rootfs") == f"../../snapshots/{made.digest}@linux-amd64/rootfs"
    assert (name / "rootfs/mark").read_bytes() == b"rootfs/0\n"


def test_platforms_are_those_of_the_index_and_fetched_when_opened(scene: Scene) -> None:
    made = multi("platforms")
    name = scene.serve(made, "platforms")
    os.stat(name)
    with scene.silence():
        assert sorted(os.listdir(name / "platforms")) == ["linux-amd64", "linux-arm-v7", "linux-arm64-v8"]
        assert os.listdir(name / "platforms/linux-arm64-v8") == ["rootfs"]
        target = os.readlink(name / "platforms/linux-arm64-v8/rootfs")
        assert target == f"../../../../snapshots/{made.digest}@linux-arm64-v8/rootfs"
    with scene.requests("manifest"):
        assert (name / "platforms/linux-arm64-v8/manifest.json").read_bytes() == made.images[1].document
    with scene.requests("blob"):
        assert (name / "platforms/linux-arm64-v8/config.json").read_bytes() == made.images[1].config
    with scene.requests("manifest", "blob", "blob"):
        assert (name / "platforms/linux-arm-v7/rootfs/mark").read_text() == f"platforms {ARM7}\n"
    layer = name / "platforms/linux-arm-v7/layers/0"
    assert layer.read_bytes() == made.images[2].layers[0].blob


def test_two_versions_of_windows_are_two_platforms_and_annotations_are_kept(scene: Scene) -> None:
    systems = [Platform("windows", "amd64", version=one) for one in ("10.0.17763.1", "10.0.20348.1")]
    notes = {"org.opencontainers.image.title": "windows", "x": "\u00e9"}
    images = [image([marked_layer(str(one))], platform=one, annotations=notes) for one in systems]
    document = json.loads(index(images, annotations=notes).document)
    for entry, one in zip(document["manifests"], systems, strict=True):
        entry["platform"]["os.version"] = one.version
    made = json.dumps(document).encode()
    for one in images:
        one.add_to(scene.registry, "windows")
    scene.registry.add_manifest("windows", "1", made, OCI_INDEX)
    name = scene.name("windows")
    names = [f"windows({one.version})-amd64" for one in systems]
    assert sorted(os.listdir(name / "platforms")) == names
    assert (name / "index.json").read_bytes() == made
    for one, directory in zip(images, names, strict=True):
        assert (name / "platforms" / directory / "manifest.json").read_bytes() == one.document
        assert (name / "platforms" / directory / "rootfs/mark").read_bytes().startswith(b"windows(")
    said = scene.mount.run("inspect", f"{scene.registry.host}/windows:1", "--platform", "windows(10.0.20348)/amd64")
    assert json.loads(said.stdout)["manifest"] == json.loads(images[1].document)


def test_an_image_without_the_platform_names_what_there_is(scene: Scene) -> None:
    made = index([image([marked_layer("arm only")], platform=ARM64)])
    name = scene.serve(made, "armonly")
    assert (name / "index.json").read_bytes() == made.document
    with refused(errno.ENOENT):
        (name / "manifest.json").read_bytes()
    with refused(errno.ENOENT):
        os.listdir(f"{name}/rootfs/")
    assert "linux/arm64/v8" in status_of(name)["error"]
    assert (name / "platforms/linux-arm64-v8/rootfs/mark").read_bytes() == b"arm only\n"


def test_status_follows_the_image_from_absent_to_local(scene: Scene) -> None:
    made = small("status", layers=2)
    name = scene.serve(made, "status")
    with scene.requests("manifest"):
        before = status_of(name)
        assert [one["state"] for one in before["parts"]] == ["local", "absent", "absent", "absent"]
        assert not before["complete"]
    os.listdir(f"{name}/rootfs/")
    with scene.silence():
        after = status_of(name)
    assert {one["state"] for one in after["parts"]} == {"local"}
    assert after["complete"]
    assert after["names"] == [f"{scene.registry.host}/status:1"]
    assert after["platform"] == "linux/amd64"
    assert [one["diff_id"] for one in after["parts"][2:]] == made.diff_ids
    assert [one["kind"] for one in after["parts"]] == ["manifest", "config", "layer", "layer"]


def test_status_tells_what_failed_and_why(scene: Scene) -> None:
    made = small("failing")
    name = scene.serve(made, "failing")
    fault = scene.registry.fault(status(403), made.layers[0].digest, times=None)
    with refused(errno.EACCES):
        os.listdir(f"{name}/rootfs/")
    # The config is fetched separately, so the failed layer does not affect it.
    until(lambda: [one["state"] for one in status_of(name)["parts"]] == ["local", "local", "failed"])
    assert "answered 403" in status_of(name)["parts"][2]["error"]
    assert "answered 403" in (name / "status").read_text()
    fault.times = 0
    until(lambda: os.listdir(f"{name}/rootfs/"))
    assert status_of(name)["complete"]
    assert status_of(name)["error"] is None
    assert "answered 403" not in (name / "status").read_text()


def test_status_shows_what_is_loading(scene: Scene) -> None:
    made = small("loading")
    name = scene.serve(made, "loading")
    os.stat(name)
    scene.registry.fault(stall(100), made.layers[0].digest)
    reader = os.spawnlp(os.P_NOWAIT, "ls", "ls", f"{name}/rootfs/")
    assert scene.registry.valve.wait_arrival()
    until(lambda: _layer_state(name) == "loading")
    with scene.silence():
        assert f"{scene.registry.host}/loading" in status_of(name)["parts"][2]["where"]
        assert "loading" in (name / "status").read_text()
    scene.registry.release()
    assert os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0
    assert _layer_state(name) == "local"


def _layer_state(name: os.PathLike[str]) -> str:
    with open(os.path.join(name, "status.json"), "rb") as file:
        state = json.load(file)["parts"][2]["state"]
    assert state in STATES
    return state


def test_a_cut_on_the_way_is_resumed_and_nobody_notices(scene: Scene) -> None:
    made = small("cut")
    name = scene.serve(made, "cut")
    scene.registry.fault(cut_at(60), made.layers[0].digest)
    assert (name / "rootfs/mark").read_bytes() == b"cut/0\n"
    assert status_of(name)["complete"]


def test_status_is_never_stale_and_has_the_right_size(scene: Scene) -> None:
    name = scene.serve(small("fresh"), "fresh")
    for file in ("status", "status.json"):
        text = succeed("cat", name / file)
        assert os.stat(name / file).st_size == len(text.encode())
        with refused(errno.EPERM):
            os.open(name / file, os.O_WRONLY)


def test_an_image_directory_takes_no_change(scene: Scene) -> None:
    name = scene.serve(small("fixed"), "fixed")
    for path in (name / "new", name / "layers/9"):
        with refused(errno.EPERM):
            os.mkdir(path)
        with refused(errno.EPERM):
            os.symlink("x", path)
        with refused(errno.EPERM):
            os.open(path, os.O_CREAT | os.O_WRONLY)
    for file in ("manifest.json", "config.json", "rootfs", "status"):
        with refused(errno.EPERM):
            os.unlink(name / file)
        with refused(errno.EPERM):
            os.rename(name / file, name / "renamed")
    with refused(errno.EPERM):
        os.chmod(name, 0o700)


def test_docker_media_types_are_served_alike(scene: Scene) -> None:
    both = index([image([marked_layer("docker")], docker=True)], docker=True)
    name = scene.serve(both, "docker")
    assert (name / "rootfs/mark").read_bytes() == b"docker\n"
    assert (name / "index.json").read_bytes() == both.document


def test_opening_pull_brings_everything_and_a_second_asks_nobody(scene: Scene) -> None:
    name = scene.serve(small("pulled", layers=3), "pulled")
    with scene.requests("manifest", *["blob"] * 4):
        chain_id = (name / "pull").read_text().strip()
    with scene.silence():
        assert (name / "pull").read_text().strip() == chain_id
        assert (scene.mount.snapshots / chain_id / "rootfs").is_dir()
        assert "pull" not in os.listdir(name)
        assert status_of(name)["complete"]


def test_tag_by_attribute_names_the_image_once_more(scene: Scene) -> None:
    made = small("tagged")
    name = scene.serve(made, "tagged")
    with scene.requests("manifest"):
        os.stat(name)
    with scene.silence():
        os.setxattr(scene.images, "user.imgfs.tag", f"another-name {made.digest}".encode())
    assert os.readlink(scene.images / "another-name") == made.digest
    for bad in (b"Bad Name/x", b"\xff", b"", b"localhost/App:1"):
        with refused(errno.EINVAL):
            os.setxattr(scene.images, "user.imgfs.tag", bad + b" " + made.digest.encode())
    with refused(errno.EINVAL):
        os.setxattr(scene.images, "user.imgfs.tag", b"another-name sha256:12")
