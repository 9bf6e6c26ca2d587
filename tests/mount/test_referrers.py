"""Referrers, tags and repositories in a real mount: which operations send requests and which send none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.digest import Digest
from imgfs.testing.build import Image, referrer, referrers_index
from imgfs.testing.faults import html, stall, status
from tests.mount.scene import PATIENCE, Scene, error_of, refused, serving, small, succeed
from tests.support.mounted import Mounted
from tests.support.servers import Upload, docker_registry

SBOM, SIGNATURE = "application/spdx+json", "application/vnd.test.signature"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("referrers")) as made:
        yield made


def signed(scene: Scene, mark: str) -> tuple[Path, Image, Image]:
    """Push an image, its SBOM and its signature, and resolve the image name.

    Return the path of the name, the SBOM and the signature.
    """
    box = small(mark)
    name = scene.serve(box, mark)
    sbom = referrer(box, SBOM, f"sbom of {mark}".encode(), annotations={"made": "here"})
    signature = referrer(box, SIGNATURE, f"signature of {mark}".encode())
    for one in (sbom, signature):
        one.add_to(scene.registry, mark)
    os.readlink(name)
    return name, sbom, signature


def test_listing_sends_no_request_and_refresh_sends_one(scene: Scene) -> None:
    name, sbom, signature = signed(scene, "around")
    directory = name / "referrers"
    with scene.silence():
        assert os.listdir(directory) == []
        succeed("ls", "-lR", scene.images)
        succeed("find", scene.images, "-ls")
        for nothing in ("refresh:", sbom.digest, "sha256:1.json", f"{sbom.digest}.jsonl"):
            with refused(errno.ENOENT):
                os.stat(directory / nothing)
        os.stat(directory / "refresh")
    with scene.requests("referrers"):
        assert sorted((directory / "refresh").read_text().split()) == sorted((sbom.digest, signature.digest))
    with scene.silence():
        assert sorted(os.listdir(directory)) == sorted(f"{one.digest}.json" for one in (sbom, signature))
        succeed("ls", "-lR", directory)
        path = directory / f"{sbom.digest}.json"
        assert path.stat().st_size == len(sbom.document)
        assert os.getxattr(path, "user.imgfs.artifact_type") == SBOM.encode()
        assert json.loads(os.getxattr(path, "user.imgfs.annotations")) == {"made": "here"}


def test_reading_a_referrer_makes_its_blobs_readable(scene: Scene) -> None:
    name, sbom, _ = signed(scene, "reading")
    (name / "referrers/refresh").read_bytes()
    content = scene.blob(Digest.of(b"sbom of reading"))
    with scene.silence(), refused(errno.ENOENT):
        content.read_bytes()
    path = name / f"referrers/{sbom.digest}.json"
    with scene.requests("manifest"):
        assert path.read_bytes() == sbom.document
    with scene.requests("blob"):
        assert content.read_bytes() == b"sbom of reading"
    with scene.silence():
        assert path.read_bytes() == sbom.document
        assert scene.blob(sbom.digest).read_bytes() == sbom.document
        assert os.listdir(scene.directory(sbom.digest) / "referrers") == []


def test_an_unlisted_referrer_is_fetched_by_digest(scene: Scene) -> None:
    name, sbom, signature = signed(scene, "unlisted")
    path = name / f"referrers/{sbom.digest}.json"
    with scene.requests("manifest"):
        assert path.read_bytes() == sbom.document
    with scene.silence():
        assert os.listdir(path.parent) == [path.name]
        assert os.getxattr(path, "user.imgfs.artifact_type") == SBOM.encode()
        assert json.loads(os.getxattr(path, "user.imgfs.annotations")) == {"made": "here"}
        assert path.read_bytes() == sbom.document
    with scene.requests("blob"):
        assert scene.blob(Digest.of(b"sbom of unlisted")).read_bytes() == b"sbom of unlisted"
    (name / "referrers/refresh").read_bytes()
    assert sorted(os.listdir(path.parent)) == sorted(f"{one.digest}.json" for one in (sbom, signature))


def test_a_missing_referrer_is_enoent_and_one_of_another_image_is_ebadmsg(scene: Scene) -> None:
    name, _, _ = signed(scene, "unfound")
    _, foreign, _ = signed(scene, "unfound-other")
    foreign.add_to(scene.registry, "unfound")
    directory = name / "referrers"
    absent = Digest.of(b"no such referrer")
    with scene.requests("manifest"), refused(errno.ENOENT):
        (directory / f"{absent}.json").read_bytes()
    assert str(absent) in error_of(directory)
    with scene.requests("manifest"), refused(errno.EBADMSG):
        (directory / f"{foreign.digest}.json").read_bytes()
    assert "it refers to" in error_of(directory)
    assert os.listdir(directory) == []
    assert foreign.digest not in os.listdir(scene.mount.content)


def test_refresh_of_one_type_lists_only_that_type(scene: Scene) -> None:
    name, sbom, _ = signed(scene, "types")
    with scene.requests("referrers"):
        assert (name / f"referrers/refresh:{quote(SBOM, safe='')}").read_text() == f"{sbom.digest}\n"
    assert os.listdir(name / "referrers") == [f"{sbom.digest}.json"]


def test_referrers_survive_a_remount_and_are_read_only(scene: Scene) -> None:
    name, sbom, _ = signed(scene, "remount")
    (name / "referrers/refresh").read_bytes()
    scene.mount.stop()
    scene.mount.start()
    path = name / f"referrers/{sbom.digest}.json"
    with scene.silence():
        assert len(os.listdir(path.parent)) == 2
    for action in (
        lambda: path.unlink(),
        lambda: path.open("wb"),
        lambda: (path.parent / "x").write_bytes(b""),
        lambda: (path.parent / "refresh").open("wb"),
        lambda: path.parent.rmdir(),
    ):
        with refused(errno.EPERM):
            action()


def test_a_listed_image_that_refers_to_nothing_is_refused_when_it_is_read(scene: Scene) -> None:
    name, _, _ = signed(scene, "lie")
    other = small("lie other")
    other.add_to(scene.registry, "lie")
    lying = json.dumps({"manifests": [other.descriptor]}).encode()
    scene.registry.fault(status(200, lying, Content_Type=OCI_INDEX), "lie/referrers")
    path = name / f"referrers/{other.digest}.json"
    assert (name / "referrers/refresh").read_text() == f"{other.digest}\n"
    with refused(errno.EBADMSG):
        path.read_bytes()
    assert "refers to nothing" in error_of(path)


def test_a_failed_refresh_is_shown_at_the_directory_and_by_the_command(scene: Scene) -> None:
    name, _, _ = signed(scene, "page")
    scene.registry.fault(html(), "page/referrers")
    with refused(errno.EBADMSG):
        (name / "referrers/refresh").read_bytes()
    assert "is it a login page" in error_of(name / "referrers")
    done = scene.mount.run("referrers", f"{scene.registry.host}/page:1")
    assert (done.returncode, "is it a login page" in done.stderr) == (6, True)


def test_the_command_lists_referrers_as_table_and_as_json(scene: Scene) -> None:
    name, sbom, signature = signed(scene, "command")
    image = f"{scene.registry.host}/command:1"
    with scene.silence():
        assert scene.mount.run("referrers", image, "--local", "--format", "json").stdout == "[]\n"
    with scene.requests("referrers"):
        done = scene.mount.run("referrers", image)
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
        "TYPE",
        *(kind for _, kind in sorted([(sbom.digest, SBOM), (signature.digest, SIGNATURE)])),
    ]
    with scene.requests("referrers"):
        done = scene.mount.run("referrers", image, "--type", SBOM, "--format", "json")
    (found,) = json.loads(done.stdout)
    assert (found["digest"], found["artifact_type"], found["annotations"]) == (sbom.digest, SBOM, {"made": "here"})
    assert Path(found["path"]).samefile(name / f"referrers/{sbom.digest}.json")
    with scene.silence():
        assert scene.mount.run("referrers", image, "--local", "--type", "none/none").returncode == 0


def test_a_waiting_reader_can_be_interrupted(scene: Scene) -> None:
    name, _, _ = signed(scene, "wait")
    scene.registry.fault(stall(), "wait/referrers")
    reader = subprocess.Popen(["cat", name / "referrers/refresh"], stderr=subprocess.DEVNULL)
    scene.registry.valve.wait_arrival()
    reader.kill()
    reader.wait(PATIENCE)
    scene.registry.release()


def test_tags_and_repositories_are_read_from_unlisted_files(scene: Scene) -> None:
    for tag in ("1", "2", "v3"):
        scene.serve(small("tags"), "deep/tags", tag)
    host = scene.images / scene.registry.host
    scene.registry.page = 2
    with scene.silence():
        assert os.listdir(host / "deep/tags") == []
        os.stat(host / "deep/tags/_tags")
    with scene.requests("tags", "tags"):
        assert (host / "deep/tags/_tags").read_text() == "1\n2\nv3\n"
    scene.registry.page = 1000
    with scene.requests("catalog"):
        assert "deep/tags" in (host / "_catalog").read_text().split()
    with scene.requests("tags"):
        assert succeed(*imgfs(scene, "tags", f"{scene.registry.host}/deep/tags")).split() == ["1", "2", "v3"]
    with scene.requests("catalog"):
        listed = scene.mount.run("tags", scene.registry.host, "--format", "json")
        assert "deep/tags" in json.loads(listed.stdout)
    with scene.silence():
        assert "deep" not in os.listdir(host)
        for nowhere in (scene.images / "_catalog", host / "_tags", host / "deep/_catalog"):
            with refused(errno.ENOENT):
                nowhere.read_bytes()


def imgfs(scene: Scene, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "imgfs", arguments[0], "--mountpoint", str(scene.mount.path), *arguments[1:]]


def test_failed_lists_of_tags_and_repositories_have_exit_codes_and_the_registrys_error(scene: Scene) -> None:
    host = scene.images / scene.registry.host
    with refused(errno.ENOENT):
        (host / "nobody/_tags").read_bytes()
    done = scene.mount.run("tags", f"{scene.registry.host}/nobody")
    assert (done.returncode, "NAME_UNKNOWN" in done.stderr) == (3, True)
    scene.registry.fault(status(401), "_catalog", times=None)
    assert scene.mount.run("tags", scene.registry.host).returncode == 4
    assert scene.mount.run("tags", f"{scene.registry.host}/a:1").returncode == 2


def test_docker_registry_serves_tags_catalog_and_referrers_by_tag(tmp_path: Path, mounted: Mounted) -> None:
    box = small("real")
    sbom = referrer(box, SBOM, b"sbom of real")
    with docker_registry(tmp_path / "registry") as registry:
        upload = Upload(registry.host, "team/app")
        for tag in ("1", "2"):
            box.add_to(upload, "team/app", tag)
        name = f"{registry.host}/team/app:1"
        os.readlink(mounted.image(name))
        assert mounted.run("referrers", name, "--format", "json").stdout == "[]\n"
        sbom.add_to(upload, "team/app")
        listed = referrers_index([(SBOM, sbom)])
        upload.add_manifest("team/app", f"sha256-{box.digest.hex}", listed, OCI_INDEX)
        (found,) = json.loads(mounted.run("referrers", name, "--type", SBOM, "--format", "json").stdout)
        assert Path(found["path"]).read_bytes() == sbom.document
        assert (mounted.content / Digest.of(b"sbom of real")).read_bytes() == b"sbom of real"
        assert set(mounted.run("tags", f"{registry.host}/team/app").stdout.split()) >= {"1", "2"}
        assert mounted.run("tags", registry.host).stdout == "team/app\n"
        assert mounted.run("tags", f"{registry.host}/nobody").returncode == 3
