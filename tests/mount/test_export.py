"""`imgfs export` through a mount: skopeo, umoci and imgfs read the result, and a killed export can continue."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.faults import stall
from imgfs.testing.images import ARM64, BuiltIndex, File, Image, attestation, image, index, layer
from tests.archives.memory import blobs_of, layout_members, members_of, tar
from tests.mount.archiving import done, gzipped, imgfs, packed, skopeo
from tests.mount.scene import Scene, serving, until
from tests.support.mounted import IMGFS, PATIENCE
from tests.support.programs import run as run_program

PIECE = 1 << 20


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("export")) as made:
        yield made


def served(scene: Scene, made: Image | BuiltIndex, mark: str) -> str:
    """Serve an image at the registry and return its name. imgfs stores nothing of it yet."""
    return str(scene.serve(made, mark).relative_to(scene.images))


def platforms(mark: str) -> BuiltIndex:
    ours = packed(f"{mark}-ours")
    return index([image([layer([File("mark", f"{mark}-theirs".encode())])], platform=ARM64), ours, attestation(ours)])


def test_layout_tar_has_the_original_blobs_and_is_reproducible(scene: Scene, tmp_path: Path) -> None:
    made = packed("bytes")
    name = served(scene, made, "bytes")
    assert done(scene, "export", name, "-o", tmp_path / "a.tar") == ""
    data = (tmp_path / "a.tar").read_bytes()
    assert imgfs(scene, "export", name).stdout == data
    with scene.silence():
        assert imgfs(scene, "export", name, "-o", "-", "--as", "oci").stdout == data
    files = members_of(data)
    for digest, blob in blobs_of(made).items():
        assert files.pop(f"blobs/sha256/{digest.hex}") == blob
    assert set(files) == {"index.json", "oci-layout"}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert [one.name for one in members] == sorted(one.name for one in members)
    assert {(one.mtime, one.uid, one.gid, one.uname) for one in members} == {(0, 0, 0, "")}


def test_skopeo_reads_the_tar_and_keeps_the_digest(scene: Scene, tmp_path: Path) -> None:
    made = gzipped("to-skopeo")
    name = served(scene, made, "to-skopeo")
    done(scene, "export", name, "-o", tmp_path / "a.tar")
    assert json.loads(skopeo("inspect", f"oci-archive:{tmp_path}/a.tar"))["Digest"] == made.digest
    assert skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/a.tar:{name}") == made.document
    skopeo("copy", "--preserve-digests", f"oci-archive:{tmp_path}/a.tar", f"oci:{tmp_path}/layout:x")
    for digest, data in blobs_of(made).items():
        assert (tmp_path / "layout/blobs/sha256" / digest.hex).read_bytes() == data


def test_umoci_unpacks_the_directory(scene: Scene, tmp_path: Path) -> None:
    made = gzipped("to-umoci")
    done(scene, "tag", served(scene, made, "to-umoci"), "to-umoci")
    done(scene, "export", "to-umoci", "-o", f"{tmp_path}/layout/")
    run_program("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/layout:to-umoci", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/mark").read_text() == "to-umoci"


def test_docker_archive_is_read_by_skopeo_and_imported_with_the_same_digest(scene: Scene, tmp_path: Path) -> None:
    made = gzipped("to-docker")
    name = served(scene, made, "to-docker")
    archive = tmp_path / "a.tar"
    done(scene, "tag", name, "to-docker")
    done(scene, "export", name, "to-docker", "--as", "docker-archive", "-o", archive)
    inspected = json.loads(skopeo("inspect", f"docker-archive:{archive}:{name}"))
    assert inspected["Layers"] == made.diff_ids
    files = members_of(archive.read_bytes())
    [entry] = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == [name, "localhost/to-docker:latest"]
    assert files[entry["Config"]] == made.config
    assert [files[one] for one in entry["Layers"]] == [one.tar for one in made.layers]
    skopeo("copy", f"docker-archive:{archive}:{name}", f"oci:{tmp_path}/back:x")
    first = done(scene, "import", archive, "came-back")
    assert done(scene, "export", "came-back", "--as", "docker-archive", "-o", tmp_path / "b.tar") == ""
    assert done(scene, "import", tmp_path / "b.tar", "came-back") == first
    assert (scene.images / "came-back/rootfs/mark").read_text() == "to-docker"


def test_import_of_an_export_is_identity(scene: Scene, tmp_path: Path) -> None:
    """Import into a new state directory, with all platforms, from file and directory; then export from there."""
    both, one = platforms("identity"), packed("identity")
    names = [served(scene, both, "identity"), served(scene, one, "identity-one")]
    done(scene, "export", *names, "--all-platforms", "-o", tmp_path / "a.tar")
    done(scene, "export", *names, "--all-platforms", "-o", f"{tmp_path}/layout/")
    (tmp_path / "fresh").mkdir()
    with serving(tmp_path / "fresh") as fresh:
        told = f"{names[0]} {both.digest}\n{names[1]} {one.digest}\n"
        assert done(fresh, "import", tmp_path / "a.tar") == told
        assert done(fresh, "import", tmp_path / "layout") == told
        done(fresh, "export", *names, "--all-platforms", "-o", tmp_path / "b.tar")
        assert (tmp_path / "b.tar").read_bytes() == (tmp_path / "a.tar").read_bytes()
        for digest, data in (blobs_of(both) | blobs_of(one)).items():
            assert fresh.blob(digest).read_bytes() == data
        assert fresh.registry.requests() == 0


def test_platform_is_the_one_of_the_mount_or_of_the_option(scene: Scene) -> None:
    made = platforms("platform")
    name = served(scene, made, "platform")
    theirs, ours = made.images[0], made.images[1]
    for options, chosen in (([], ours), (["--platform", "linux/arm64"], theirs)):
        files = members_of(imgfs(scene, "export", name, *options).stdout)
        [listed] = json.loads(files["index.json"])["manifests"]
        assert listed["digest"] == chosen.digest
        assert listed["annotations"]["org.opencontainers.image.ref.name"] == name
        assert len(files) == len(blobs_of(chosen)) + 2
    for asked in (name, served(scene, packed("single"), "single")):
        ended = imgfs(scene, "export", asked, "--platform", "linux/s390x")
        assert (ended.returncode, ended.stdout) == (3, b"")
        assert b"has nothing for linux/s390x; it has linux/" in ended.stderr


def test_docker_archive_of_another_platform(scene: Scene, tmp_path: Path) -> None:
    made = platforms("docker-platform")
    name = served(scene, made, "docker-platform")
    done(scene, "export", name, "--platform", "linux/arm64", "--as", "docker-archive", "-o", tmp_path / "a.tar")
    assert json.loads(skopeo("inspect", f"docker-archive:{tmp_path}/a.tar"))["Architecture"] == "arm64"


def test_layout_directory_keeps_its_images_and_another_directory_is_refused(scene: Scene, tmp_path: Path) -> None:
    first, second = gzipped("first"), gzipped("second")
    first.write_layout(tmp_path / "layout", "first")
    done(scene, "export", served(scene, second, "second"), "-o", tmp_path / "layout")
    assert json.loads(skopeo("inspect", f"oci:{tmp_path}/layout:first"))["Digest"] == first.digest
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("x")
    ended = imgfs(scene, "export", second.digest, "-o", tmp_path / "other")
    assert (ended.returncode, os.listdir(tmp_path / "other")) == (1, ["thesis.tex"])


def killed_in_the_middle(scene: Scene, mark: str, *arguments: str | Path) -> Image:
    """Export an image whose second layer stalls at the registry, kill the command, and wait for the layer."""
    made = packed(mark, 2 * PIECE)
    name = served(scene, made, mark)
    os.stat(scene.images / name)
    scene.registry.fault(stall(PIECE), f"GET.*{made.layers[1].digest}")
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path)}
    with subprocess.Popen([*IMGFS, "export", name, *map(str, arguments)], env=environment) as process:
        assert scene.registry.valve.wait_arrival()
        process.kill()
    scene.registry.release()
    until(lambda: scene.blob(made.layers[1].digest).read_bytes() == made.layers[1].blob)
    return made


def test_killed_export_to_a_file_does_not_change_the_file(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("before")
    made = killed_in_the_middle(scene, "killed-file", "-o", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.tar"]
    done(scene, "export", made.digest, "-o", tmp_path / "a.tar")
    assert json.loads(skopeo("inspect", f"oci-archive:{tmp_path}/a.tar"))["Digest"] == made.digest


def test_killed_export_to_a_directory_continues(scene: Scene, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    made = killed_in_the_middle(scene, "killed-directory", "-o", f"{layout}/")
    assert not (layout / "index.json").exists()
    shelf = layout / "blobs/sha256"
    there = {path.name: path.stat().st_ino for path in shelf.iterdir() if not path.name.startswith(".tmp-")}
    done(scene, "export", made.digest, "-o", layout)
    after = {path.name: path.stat().st_ino for path in shelf.iterdir()}
    assert there.items() <= after.items()
    assert set(after) == {digest.hex for digest in blobs_of(made)}
    assert json.loads(skopeo("inspect", f"oci:{layout}"))["Digest"] == made.digest


def test_damaged_blob_is_6_and_is_not_published(scene: Scene, tmp_path: Path) -> None:
    made, name = packed("damaged"), "damaged"
    digest = made.layers[1].digest
    done(scene, "import", "-", data=tar(layout_members(made, name).items()))
    [path] = scene.mount.state.glob(f"blobs/sha256/*/{digest.hex}")
    path.chmod(0o600)
    path.write_bytes(bytes(len(made.layers[1].blob)))
    for output in (tmp_path / "a.tar", f"{tmp_path}/layout/"):
        ended = imgfs(scene, "export", name, "-o", output)
        assert ended.returncode == 6
        assert digest.encode() in ended.stderr
    assert not (tmp_path / "a.tar").exists()
    assert not (tmp_path / "layout/blobs/sha256" / digest.hex).exists()


def test_unknown_image_is_3(scene: Scene, tmp_path: Path) -> None:
    ended = imgfs(scene, "export", f"{scene.registry.host}/nothing:1", "-o", tmp_path / "a.tar")
    assert ended.returncode == 3
    assert b"404" in ended.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--as", "oci-dir"], b"needs a directory"),
        (["--platform", "linux/amd64", "--all-platforms"], b"exclude each other"),
        (["--as", "docker-archive", "--all-platforms", "-o", "x"], b"contains one platform"),
        (["--platform", "amd64", "-o", "x"], b"expected os/architecture"),
        (["--as", "zip"], b"'zip'"),
        (["--as", "oci", "-o", "/"], b"is a directory"),
    ],
)
def test_invalid_options_are_2(scene: Scene, options: list[str], words: bytes) -> None:
    ended = imgfs(scene, "export", "x", *options)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert words in ended.stderr


def test_terminal_receives_progress_but_no_archive(scene: Scene, tmp_path: Path) -> None:
    name = served(scene, packed("terminal", PIECE), "terminal")
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path), "TERM": "xterm", "COLUMNS": "120"}
    ours, theirs = os.openpty()
    refused = subprocess.run(
        [*IMGFS, "export", name], stdout=theirs, stderr=subprocess.PIPE, check=False, env=environment
    )
    assert refused.returncode == 2
    assert b"name a file with -o" in refused.stderr
    archive = str(tmp_path / "a.tar")
    for arguments in (["export", name, "-o", archive], ["import", archive]):
        with subprocess.Popen([*IMGFS, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
            assert process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert b"MB" in _drawn(ours)
    os.close(theirs)
    os.close(ours)


def test_closed_pipe_ends_an_export_without_an_error_message(scene: Scene) -> None:
    name = served(scene, packed("enough", 4 * PIECE), "enough")
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path)}
    with subprocess.Popen(
        [*IMGFS, "export", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_index_with_missing_platforms_is_exported_without_them(scene: Scene) -> None:
    made = platforms("thin-export")
    lacking = made.images[0].digest.hex
    files = {name: data for name, data in layout_members(made, "thin-export").items() if lacking not in name}
    assert imgfs(scene, "import", "-", data=tar(files.items())).returncode == 0
    ended = imgfs(scene, "export", "thin-export", "--all-platforms")
    assert ended.returncode == 0
    assert ended.stderr.endswith(b"not local and no registry is known to have it: linux/arm64/v8\n")
    assert f"blobs/sha256/{lacking}" not in members_of(ended.stdout)
    refused = imgfs(scene, "export", "thin-export", "--platform", "linux/arm64")
    assert (refused.returncode, refused.stdout) == (3, b"")


def test_image_with_several_names_is_exported_once(scene: Scene) -> None:
    made = gzipped("names")
    name = served(scene, made, "names")
    done(scene, "tag", name, "names")
    files = members_of(imgfs(scene, "export", name, "names", made.digest).stdout)
    refs = [one["annotations"] for one in json.loads(files["index.json"])["manifests"]]
    assert [one["org.opencontainers.image.ref.name"] for one in refs] == [name, "names"]
    assert refs[0]["io.containerd.image.name"] == name
    assert {Digest(f"sha256:{hashlib.sha256(data).hexdigest()}") for data in files.values()} >= set(blobs_of(made))


def _drawn(terminal: int) -> bytes:
    drawn = b""
    with suppress(OSError):
        while select.select([terminal], [], [], 0)[0] and (piece := os.read(terminal, 1 << 16)):
            drawn += piece
    return drawn
