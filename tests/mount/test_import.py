"""`imgfs import` through a mount, without a registry: archives of other tools, bad archives, and interruptions."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest, chain_id
from imgfs.testing.images import ARM64, File, attestation, compress, image, index, layer
from imgfs.testing.registry import FakeRegistry
from tests.archives.memory import blobs_of, layout_members, link, saved, tar
from tests.mount.archiving import done, gzipped, imgfs, leases, names, packed, skopeo, unfinished
from tests.mount.preparing import small_disk
from tests.mount.scene import Scene, assert_verified, serving, until
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.programs import run as run_program

PIECE = 1 << 20


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("import")) as made:
        yield made
        assert_verified(made.mount.state)
        assert made.registry.requests() == 0, "an import sent a request to a registry"


def rootfs(scene: Scene, name: str) -> Path:
    return scene.images / name / "rootfs"


def mark_of(scene: Scene, name: str) -> str:
    return (rootfs(scene, name) / "mark").read_text()


def test_layout_of_skopeo_in_a_directory_keeps_every_digest(scene: Scene, tmp_path: Path) -> None:
    made = packed("skopeo-dir")
    made.write_layout(tmp_path / "made", "x")
    skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/made:x", f"oci:{tmp_path}/layout:skopeo-dir")
    assert done(scene, "import", tmp_path / "layout") == f"skopeo-dir {made.digest}\n"
    for digest, data in blobs_of(made).items():
        assert scene.blob(digest).read_bytes() == data
    assert mark_of(scene, "skopeo-dir") == "skopeo-dir"
    assert (rootfs(scene, "skopeo-dir") / "top").read_text() == "skopeo-dir" * 100
    assert os.readlink(scene.mount.snapshots / f"{made.digest}@linux-amd64") == chain_id(made.diff_ids)


def test_oci_archive_of_skopeo(scene: Scene, tmp_path: Path) -> None:
    made = gzipped("skopeo-tar")
    made.write_layout(tmp_path / "made", "x")
    skopeo("copy", f"oci:{tmp_path}/made:x", f"oci-archive:{tmp_path}/a.tar:r.test/x/skopeo-tar:1")
    [line] = done(scene, "import", tmp_path / "a.tar").splitlines()
    name, _, digest = line.partition(" ")
    assert name == "r.test/x/skopeo-tar:1"
    inspected = json.loads(skopeo("inspect", f"oci-archive:{tmp_path}/a.tar"))
    assert inspected["Digest"] == digest
    assert mark_of(scene, name) == "skopeo-tar"


def test_docker_archive_of_skopeo_is_the_same_image_each_time(scene: Scene, tmp_path: Path) -> None:
    made = gzipped("skopeo-docker")
    made.write_layout(tmp_path / "made", "x")
    archive = tmp_path / "a.tar"
    skopeo("copy", f"oci:{tmp_path}/made:x", f"docker-archive:{archive}:r.test/skopeo-docker:1")
    first = done(scene, "import", archive)
    assert first.startswith("r.test/skopeo-docker:1 sha256:")
    assert done(scene, "import", "-", data=archive.read_bytes()) == first
    assert done(scene, "import", "-", data=gzip.compress(archive.read_bytes())) == first
    directory = scene.images / "r.test/skopeo-docker:1"
    layers = json.loads((directory / "manifest.json").read_bytes())["layers"]
    assert [one["digest"] for one in layers] == made.diff_ids
    assert (directory / "config.json").read_bytes() == made.config
    assert mark_of(scene, "r.test/skopeo-docker:1") == "skopeo-docker"


def test_layout_of_umoci(scene: Scene, tmp_path: Path) -> None:
    made = gzipped("umoci")
    made.write_layout(tmp_path / "layout", "x")
    run_program("umoci", "config", "--image", f"{tmp_path}/layout:x", "--tag", "1.0", "--config.user", "nobody")
    refusal = imgfs(scene, "import", tmp_path / "layout", "r.test/umoci:latest")
    assert refusal.returncode == 2
    assert b"several images" in refusal.stderr
    lines = done(scene, "import", tmp_path / "layout", "r.test/umoci").splitlines()
    assert [line.split()[0] for line in lines] == ["r.test/umoci:x", "r.test/umoci:1.0"]
    assert json.loads((scene.images / "r.test/umoci:1.0/config.json").read_bytes())["config"]["User"] == "nobody"


@pytest.mark.parametrize("order", [1, -1])
def test_pipe_in_any_order_docker_25_and_older(scene: Scene, order: int) -> None:
    old, new = packed(f"old{order}"), packed(f"new{order}")
    files = list(saved(old, f"old{order}:1", "r.test/also:1").items())[::order]
    lines = done(scene, "import", "-", data=tar(files)).splitlines()
    assert [line.split()[0] for line in lines] == [f"docker.io/library/old{order}:1", "r.test/also:1"]
    assert mark_of(scene, f"docker.io/library/old{order}:1") == f"old{order}"
    files = [*layout_members(new, f"new{order}").items(), ("manifest.json", b"[]")][::order]
    assert done(scene, "import", "-", data=compress(tar(files), "zstd")) == f"new{order} {new.digest}\n"
    assert mark_of(scene, f"new{order}") == f"new{order}"


def test_index_with_all_its_platforms(scene: Scene) -> None:
    ours, theirs = packed("ours"), image([layer([File("mark", b"theirs")])], platform=ARM64)
    made = index([theirs, ours, attestation(ours)])
    assert done(scene, "import", "-", data=tar(layout_members(made, "both").items())) == f"both {made.digest}\n"
    assert mark_of(scene, "both") == "ours"
    assert (scene.images / "both/platforms/linux-arm64-v8/rootfs/mark").read_text() == "theirs"
    assert os.listdir(scene.directory(theirs.digest))


def test_missing_platforms_of_an_index_are_reported(scene: Scene) -> None:
    ours, theirs = packed("thin"), image([layer([File("mark", b"not there")])], platform=ARM64)
    made = index([theirs, ours])
    files = {name: data for name, data in layout_members(made, "thin").items() if theirs.digest.hex not in name}
    ended = imgfs(scene, "import", "-", data=tar(files.items()))
    assert (ended.returncode, ended.stderr) == (
        0,
        b"imgfs: listed in an index but missing in the archive: linux/arm64/v8\n",
    )
    assert mark_of(scene, "thin") == "thin"


def test_second_import_stores_nothing_and_removes_nothing(scene: Scene) -> None:
    made = packed("twice")
    data = tar(layout_members(made, "twice").items())
    done(scene, "import", "-", data=data)
    done(scene, "pull", "twice")  # makes an uncompressed layer durable: its blob and its tar become one file
    before = {path: path.stat().st_ino for path in scene.mount.state.glob("blobs/*/*/*")}
    assert done(scene, "import", "-", data=data) == f"twice {made.digest}\n"
    assert {path: path.stat().st_ino for path in scene.mount.state.glob("blobs/*/*/*")} == before
    assert leases(scene) == unfinished(scene) == []


def test_uncompressed_layer_is_one_file_after_a_pull(scene: Scene) -> None:
    made = packed("one-file", PIECE)
    diff_id = made.layers[1].diff_id
    done(scene, "import", "-", data=tar(layout_members(made, "one-file").items()))
    done(scene, "pull", "one-file")
    [blob] = scene.mount.state.glob(f"blobs/sha256/*/{diff_id.hex}")
    assert blob.samefile(scene.mount.state / f"layers/sha256/{diff_id.hex}/tar")
    assert scene.blob(diff_id).read_bytes() == made.layers[1].blob


def test_unreferenced_archive_members_are_not_stored(scene: Scene) -> None:
    made, stray = packed("stray"), b"stray" * 1000
    files = layout_members(made, "stray") | {f"blobs/sha256/{Digest.of(stray).hex}": stray, "README": b"read me"}
    done(scene, "import", "-", data=tar(files.items()))
    for data in (stray, b"read me"):
        assert not scene.blob(Digest.of(data)).exists()
    assert mark_of(scene, "stray") == "stray"


def test_import_moves_an_existing_name(scene: Scene) -> None:
    for mark in ("before", "after"):
        done(scene, "import", "-", "moving", data=tar(layout_members(packed(mark)).items()))
        assert mark_of(scene, "moving") == mark


def test_interrupted_layer_continues_at_its_offset(scene: Scene, tmp_path: Path) -> None:
    """Kill an import while its pipe stalls: the ingest stays, and the next import writes the rest."""
    made = packed("killed", 4 * PIECE)
    big = made.layers[1].digest
    data = tar(layout_members(made, "killed").items())
    half = data.index(made.layers[1].blob[:4096]) + 2 * PIECE
    ref = scene.mount.content / f"ingest/import-{big}"
    with importing(scene) as process:
        assert process.stdin
        process.stdin.write(data[:half])
        process.stdin.flush()
        until(lambda: ref.stat().st_size >= PIECE)
        process.kill()
    left = ref.stat().st_size
    inode = ref.stat().st_ino
    assert PIECE <= left <= 2 * PIECE
    assert "killed" not in names(scene)
    with importing(scene) as process:
        assert process.stdin
        process.stdin.write(data[: half + PIECE])
        process.stdin.flush()
        until(lambda: ref.stat().st_size > left)
        assert ref.stat().st_ino == inode
        process.stdin.write(data[half + PIECE :])
        assert process.communicate(timeout=PATIENCE) == (f"killed {made.digest}\n".encode(), b"")
    assert mark_of(scene, "killed") == "killed"
    assert unfinished(scene) == []


def test_interrupted_docker_layer_continues(scene: Scene) -> None:
    made = packed("killed-docker", 4 * PIECE)
    data = tar(saved(made, "r.test/killed:1").items())
    half = data.index(made.layers[1].tar[:4096]) + 2 * PIECE
    with importing(scene) as process:
        assert process.stdin
        process.stdin.write(data[:half])
        process.stdin.flush()
        until(lambda: any(size >= PIECE for size in sizes(scene)))
        process.kill()
    assert len(unfinished(scene)) == 1
    assert done(scene, "import", "-", data=data).startswith("r.test/killed:1 ")
    assert mark_of(scene, "r.test/killed:1") == "killed-docker"
    assert unfinished(scene) == []


def test_import_continues_after_the_daemon_was_killed(tmp_path: Path) -> None:
    made = packed("daemon", 4 * PIECE)
    data = tar(layout_members(made, "daemon").items())
    half = data.index(made.layers[1].blob[:4096]) + 2 * PIECE
    with serving(tmp_path) as scene:
        ref = scene.mount.content / f"ingest/import-{made.layers[1].digest}"
        with importing(scene) as process:
            assert process.stdin
            process.stdin.write(data[:half])
            process.stdin.flush()
            until(lambda: ref.stat().st_size >= PIECE)
            scene.mount.kill()
            _, complaint = process.communicate(data[half:], timeout=PATIENCE)
        assert process.returncode == 1
        assert b"the daemon of the mount has ended" in complaint
        scene.mount.start()
        assert ref.stat().st_size >= PIECE
        assert done(scene, "import", "-", data=data) == f"daemon {made.digest}\n"
        assert mark_of(scene, "daemon") == "daemon"


def test_second_import_of_one_archive_waits_for_the_first(scene: Scene) -> None:
    made = packed("twice", 4 * PIECE)
    data = tar(layout_members(made, "twice").items())
    half = data.index(made.layers[1].blob[:4096]) + 2 * PIECE
    ref = scene.mount.content / f"ingest/import-{made.layers[1].digest}"
    said = (f"twice {made.digest}\n".encode(), b"")
    with importing(scene) as first, importing(scene) as second:
        assert first.stdin
        assert second.stdin
        assert second.stderr
        first.stdin.write(data[:half])
        first.stdin.flush()
        until(lambda: ref.stat().st_size >= PIECE)
        second.stdin.write(data[: PIECE + 4096])  # past the start of the locked layer; the pipe holds the rest
        second.stdin.flush()
        assert b"another writer has import-sha256:" in second.stderr.readline()
        first.stdin.write(data[half:])
        assert first.communicate(timeout=PATIENCE) == said
        second.stdin.write(data[PIECE + 4096 :])
        assert second.communicate(timeout=PATIENCE) == said
    assert mark_of(scene, "twice") == "twice"
    assert unfinished(scene) == []


@pytest.mark.parametrize("form", ["tar", "directory"])
def test_blob_of_a_failed_import_stays_if_another_import_uses_it(scene: Scene, tmp_path: Path, form: str) -> None:
    shared = layer([File("shared", form.encode() * 100)])
    own = layer([File("own", random.Random(form).randbytes(3 * PIECE))])
    good = image([shared, layer([File("mark", f"good {form}".encode())])])
    bad = image([shared, own, layer([File("mark", f"bad {form}".encode())])])
    name = f"good-{form}"
    members = layout_members(bad, "bad")
    del members[f"blobs/sha256/{bad.layers[2].digest.hex}"]
    ahead = [f"blobs/sha256/{one.digest.hex}" for one in (own, shared)]  # the sort below puts `shared` first
    data = tar(sorted(members.items(), key=lambda member: member[0] in ahead and -1 - ahead.index(member[0])))
    with importing(scene) as process:
        assert process.stdin
        process.stdin.write(data[: 2 * PIECE])
        process.stdin.flush()
        until(lambda: "user.imgfs.verified" in os.listxattr(scene.blob(shared.digest)))
        if form == "tar":
            done(scene, "import", "-", name, data=tar(layout_members(good).items()))
        else:
            good.write_layout(tmp_path / "good", "x")
            done(scene, "import", tmp_path / "good", name)
        _, complaint = process.communicate(data[2 * PIECE :], timeout=PATIENCE)
    assert process.returncode == 3
    assert b"is listed in the archive but missing from it" in complaint
    assert scene.blob(shared.digest).read_bytes() == shared.blob
    assert mark_of(scene, name) == f"good {form}"
    assert own.digest not in os.listdir(scene.mount.content)


def test_truncated_archive_is_6_and_the_complete_archive_continues(scene: Scene, tmp_path: Path) -> None:
    made = packed("cut", 4 * PIECE)
    data = tar(layout_members(made, "cut").items())
    ended = imgfs(scene, "import", "-", data=data[: data.index(made.layers[1].blob[:4096]) + 2 * PIECE])
    assert ended.returncode == 6
    assert b"get the complete archive and import again" in ended.stderr
    assert unfinished(scene) == [f"import-{made.layers[1].digest}"]
    assert scene.blob(made.layers[0].digest).exists()
    (tmp_path / "whole.tar").write_bytes(data)
    done(scene, "import", tmp_path / "whole.tar")
    assert mark_of(scene, "cut") == "cut"
    assert unfinished(scene) == []


def test_ingest_with_a_wrong_prefix_is_dropped_and_written_again(scene: Scene, tmp_path: Path) -> None:
    made = packed("wrong-prefix")
    layer_digest = made.layers[1].digest
    data = tar(layout_members(made, "wrong-prefix").items())
    (tmp_path / "a.tar").write_bytes(data)
    (scene.mount.content / f"ingest/import-{layer_digest}").write_bytes(b"of another archive")
    ended = imgfs(scene, "import", "-", data=data)
    assert ended.returncode == 6
    assert b"which are dropped now; import again" in ended.stderr
    (scene.mount.content / f"ingest/import-{layer_digest}").write_bytes(b"of another archive")
    done(scene, "import", tmp_path / "a.tar")
    assert mark_of(scene, "wrong-prefix") == "wrong-prefix"


def test_ingest_longer_than_the_blob_is_dropped(scene: Scene) -> None:
    made = packed("long-prefix")
    (scene.mount.content / f"ingest/import-{made.layers[1].digest}").write_bytes(bytes(100_000))
    done(scene, "import", "-", data=tar(layout_members(made, "long-prefix").items()))
    assert mark_of(scene, "long-prefix") == "long-prefix"


def hostile() -> dict[str, tuple[bytes, int, bytes]]:
    """Return bad archives, each with its exit code and a part of its error. tests/archives/test_hostile.py has more."""
    made = packed("hostile")
    files = layout_members(made, "hostile", "also")
    layer_name = f"blobs/sha256/{made.layers[0].digest.hex}"
    lying = json.loads(made.config) | {"rootfs": {"type": "layers", "diff_ids": [Digest.of(b"x")] * 3}}
    document = json.loads(made.document)
    config = json.dumps(lying).encode()
    document["config"] |= {"digest": Digest.of(config), "size": len(config)}
    manifest = json.dumps(document).encode()
    entry = {"mediaType": made.media_type, "digest": Digest.of(manifest), "size": len(manifest)}
    liar = files | {
        f"blobs/sha256/{Digest.of(config).hex}": config,
        f"blobs/sha256/{Digest.of(manifest).hex}": manifest,
        "index.json": json.dumps(
            {"manifests": [entry | {"annotations": {"org.opencontainers.image.ref.name": "hostile"}}]}
        ).encode(),
    }
    return {
        "blob that is not its name": (tar((files | {layer_name: b"other"}).items()), 6, b"other bytes"),
        "missing layer": (
            tar((name, data) for name, data in files.items() if name != layer_name),
            3,
            b"missing from it",
        ),
        "diff IDs": (tar(liar.items()), 6, b"the image config says"),
        "leads out": (tar([("../../x", b"1"), *files.items()]), 6, b"leads out"),
        "link out": (tar([*files.items(), link("x", "../../etc/shadow")]), 6, b"out of the archive"),
        "twice": (tar([*files.items(), (layer_name, made.layers[0].blob)]), 6, b"appears twice"),
        "index of 100 MB": (tar((files | {"index.json": bytes(100 << 20)}).items()), 6, b"the limit is"),
        "nothing": (tar([("x", b"1")]), 3, b"neither index.json nor manifest.json"),
        "no tar": (b"hello, this is text" * 100, 6, b"is not a tar"),
        "empty": (b"", 6, b"is empty"),
    }


HOSTILE = hostile()


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_is_a_short_error_and_stores_nothing(scene: Scene, case: str) -> None:
    data, code, words = HOSTILE[case]
    before, stored, held = names(scene), set(os.listdir(scene.mount.content)), leases(scene)
    ended = imgfs(scene, "import", "-", data=data)
    assert (ended.returncode, ended.stdout) == (code, b"")
    assert words in ended.stderr
    assert ended.stderr.count(b"imgfs: ") <= 2
    assert names(scene) == before
    assert set(os.listdir(scene.mount.content)) == stored
    assert unfinished(scene) == []
    assert leases(scene) == held  # leases of imports that earlier tests killed, until they expire


def test_archive_without_names_requires_a_name_argument(scene: Scene) -> None:
    made = packed("nameless")
    data = tar(layout_members(made, "1.0").items())
    ended = imgfs(scene, "import", "-", data=data)
    assert ended.returncode == 2
    assert b"SOURCE NAME" in ended.stderr
    assert done(scene, "import", "-", "nameless", data=data) == f"nameless {made.digest}\n"


def test_missing_source_is_3_and_a_terminal_is_2(scene: Scene, tmp_path: Path) -> None:
    assert imgfs(scene, "import", tmp_path / "nothing.tar").returncode == 3
    assert imgfs(scene, "import", tmp_path).returncode == 3
    ours, theirs = os.openpty()
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path)}
    asked = subprocess.run([*IMGFS, "import", "-"], stdin=theirs, capture_output=True, check=False, env=environment)
    os.close(theirs)
    os.close(ours)
    assert asked.returncode == 2
    assert b"an archive is not read from a terminal" in asked.stderr


def test_garbage_collection_keeps_imported_content_unless_all_is_given(tmp_path: Path) -> None:
    made = packed("alone")
    with serving(tmp_path) as scene:
        done(scene, "import", "-", "r.test/alone:1", data=tar(layout_members(made).items()))
        assert mark_of(scene, "r.test/alone:1") == "alone"
        other = packed("other")
        done(scene, "import", "-", "other", data=tar(layout_members(other).items()))
        done(scene, "rm", "r.test/alone:1")
        told = json.loads(done(scene, "gc", "--format", "json"))
        assert told["removed"] == []
        for digest, data in blobs_of(made).items():
            assert scene.blob(digest).read_bytes() == data
        done(scene, "tag", made.digest, "r.test/alone:1")
        assert mark_of(scene, "r.test/alone:1") == "alone"
        done(scene, "rm", "r.test/alone:1")
        scene.mount.stop()
        scene.mount.start()
        told = json.loads(done(scene, "gc", "--all", "--format", "json"))
        assert {one["id"] for one in told["removed"]} >= set(blobs_of(made))
        assert mark_of(scene, "other") == "other"
        assert scene.registry.requests() == 0


def test_full_disk_is_8_and_the_import_continues_after_space_is_freed(tmp_path: Path) -> None:
    made = packed("full", 12 * PIECE)
    data = tar(layout_members(made, "full").items())
    with small_disk(tmp_path, 32 << 20) as disk, Mounted(tmp_path) as mount:
        mount.state = disk / "state"
        mount.start()
        scene = Scene(FakeRegistry(), mount)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 6 * PIECE))
        ended = imgfs(scene, "import", "-", data=data)
        assert ended.returncode == 8
        [left] = unfinished(scene)
        assert "full" not in names(scene)
        filler.unlink()
        assert done(scene, "import", "-", data=data) == f"full {made.digest}\n"
        assert scene.blob(made.layers[1].digest).stat().st_size == len(made.layers[1].blob)
        assert left == f"import-{made.layers[1].digest}"
        mount.stop()


def importing(scene: Scene) -> subprocess.Popen[bytes]:
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mount.path)}
    return subprocess.Popen(
        [*IMGFS, "import", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def sizes(scene: Scene) -> list[int]:
    return [(scene.mount.content / "ingest" / name).stat().st_size for name in unfinished(scene)]
