"""content/ingest/ with common programs: cp, dd, tee, mv, curl, rsync, and the copy helpers of Python."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.faults import cut_at
from tests.mount.scene import Scene, error_of, run, serving, succeed
from tests.support.programs import program

SIZE = 3_300_001
"""More than one write request of the kernel, and not a multiple of a block."""


class Delivery:
    """Bytes that a test copies from a file into the tree."""

    def __init__(self, scene: Scene, source: Path, mark: str) -> None:
        self.scene = scene
        self.mark = mark
        self.data = hashlib.shake_256(mark.encode()).digest(SIZE)
        self.source = source
        self.source.write_bytes(self.data)
        self.ref = scene.mount.content / "ingest" / mark
        self.digest = Digest.of(self.data)
        self.blob = scene.blob(self.digest)

    def begin(self, count: int) -> None:
        """Write the first `count` bytes in advance."""
        with self.ref.open("wb") as file:
            file.write(self.data[:count])

    def finish(self) -> None:
        """Commit with mv and compare."""
        succeed("mv", self.ref, self.blob)
        assert self.blob.read_bytes() == self.data
        assert not self.ref.exists()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("tools")) as made:
        yield made


@pytest.fixture
def delivery(scene: Scene, tmp_path: Path, request: pytest.FixtureRequest) -> Delivery:
    return Delivery(scene, tmp_path / "source", request.node.name)


def shell(script: str, *arguments: Path) -> None:
    succeed("bash", "-ec", script, "bash", *arguments)


WHOLE = {
    "cp": 'cp "$1" "$2"',
    "cp-p": 'cp -p "$1" "$2"',
    "cp-a": 'cp -a "$1" "$2"',
    "cp-sparse": 'cp --sparse=always "$1" "$2"',
    "cp-f": 'cp -f "$1" "$2"',
    "cp-over": 'echo other > "$2"; cp "$1" "$2"',
    "cat": 'cat "$1" > "$2"',
    "cat-append": 'cat "$1" >> "$2"',
    "cat-noclobber": 'set -C; cat "$1" > "$2"',
    "cat-again": 'echo other > "$2"; cat "$1" > "$2"',
    "tee": 'tee "$2" < "$1" > /dev/null',
    "dd": 'dd if="$1" of="$2" bs=1M status=none',
    "dd-odd": 'dd if="$1" of="$2" bs=4093 status=none',
    "dd-fsync": 'dd if="$1" of="$2" bs=64k conv=fsync status=none',
    "dd-direct": 'dd if="$1" of="$2" bs=512k oflag=direct status=none',
    "dd-sync": 'dd if="$1" of="$2" bs=512k oflag=sync status=none',
    "truncate": 'echo other > "$2"; truncate -s 0 "$2"; cat "$1" >> "$2"',
    "truncate-nothing": 'truncate -s 0 "$2"; cat "$1" >> "$2"',
    "touch": 'touch "$2"; cat "$1" >> "$2"; touch "$2"',
    "install": 'install -m 0644 "$1" "$2"',
    "subshell": '( head -c 1000000; cat ) < "$1" > "$2"',
    "rsync": 'rsync "$1" "$2"',
    "rsync-a": 'rsync -a "$1" "$2"',
    "rsync-inplace": 'rsync --inplace "$1" "$2"',
    "mv": 'cp "$1" "$1.moved"; mv "$1.moved" "$2"',
    "mv-within": 'cat "$1" > "$2.part"; mv "$2.part" "$2"',
    "mv-over": 'echo other > "$2"; cat "$1" > "$2.part"; mv -f "$2.part" "$2"',
}


@pytest.mark.parametrize("script", WHOLE.values(), ids=WHOLE.keys())
def test_a_file_is_brought_by(delivery: Delivery, script: str) -> None:
    program("rsync")
    shell(script, delivery.source, delivery.ref)
    delivery.finish()


RESUMED = {
    "tail": 'tail -c +1000001 "$1" >> "$2"',
    "tee-a": 'tail -c +1000001 "$1" | tee -a "$2" > /dev/null',
    "dd-append": 'tail -c +1000001 "$1" | dd of="$2" bs=64k conv=notrunc oflag=append status=none',
    "dd-seek": 'dd if="$1" of="$2" bs=4k skip=1000000B seek=1000000B conv=notrunc status=none',
    "rsync-append": 'rsync --append "$1" "$2"',
}


@pytest.mark.parametrize("script", RESUMED.values(), ids=RESUMED.keys())
def test_the_rest_is_brought_by(delivery: Delivery, script: str) -> None:
    program("rsync")
    delivery.begin(1_000_000)
    shell(script, delivery.source, delivery.ref)
    delivery.finish()


def test_rsync_appends_no_more_than_what_is_missing(delivery: Delivery) -> None:
    program("rsync")
    delivery.begin(1_000_000)
    options = ("--inplace", "--append", "--no-whole-file", "--stats", "--no-h")
    told = succeed("rsync", *options, delivery.source, delivery.ref)
    assert f"Literal data: {SIZE - 1_000_000} bytes" in told
    delivery.finish()


def copy_by_descriptor(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while os.sendfile(writing.fileno(), reading.fileno(), None, SIZE):
            pass


def copy_by_stream(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("xb", buffering=1000) as writing:
        shutil.copyfileobj(reading, writing, 999)


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy, shutil.copy2, copy_by_descriptor, copy_by_stream])
def test_a_file_is_brought_by_python(delivery: Delivery, copy: Callable[[Path, Path], object]) -> None:
    copy(delivery.source, delivery.ref)
    delivery.finish()


def test_curl_goes_on_where_it_was_cut_off(delivery: Delivery, scene: Scene) -> None:
    scene.registry.add_blob(delivery.data)
    url = f"{scene.registry.url}/v2/any/blobs/{delivery.digest}"
    scene.registry.fault(cut_at(1_234_567), delivery.digest)
    assert run("curl", "-sS", "-C", "-", "-o", delivery.ref, url).returncode == 18
    cut = delivery.ref.stat().st_size
    assert 0 < cut <= 1_234_567
    succeed("curl", "-sS", "-C", "-", "-o", delivery.ref, url)
    assert scene.registry.log[-1].range == f"bytes={cut}-"
    delivery.finish()


def test_curl_that_begins_again_drops_what_was_there(delivery: Delivery, scene: Scene) -> None:
    scene.registry.add_blob(delivery.data)
    delivery.begin(1_000)
    succeed("curl", "-sS", "-o", delivery.ref, f"{scene.registry.url}/v2/any/blobs/{delivery.digest}")
    delivery.finish()


def test_curl_of_what_is_stored_fetches_nothing(delivery: Delivery, scene: Scene) -> None:
    delivery.begin(SIZE)
    delivery.finish()
    ref = delivery.ref.with_name(f"layer-{delivery.digest}")
    assert run("curl", "-sS", "-o", ref, f"{scene.registry.url}/v2/any/blobs/{delivery.digest}").returncode == 23
    assert not ref.exists()


def test_mv_tells_what_is_wrong(delivery: Delivery) -> None:
    succeed("cp", delivery.source, delivery.ref)
    wrong = delivery.scene.blob(Digest.of(b"not these"))
    for target, word in ((wrong, "Bad message"), (wrong.with_name("sha256:1"), "Operation not permitted")):
        done = run("mv", delivery.ref, target)
        assert (done.returncode, word in done.stderr) == (1, True), done.stderr
        assert not target.exists()
    assert delivery.digest not in error_of(delivery.ref)
    assert run("mv", delivery.ref, wrong).returncode == 1
    assert delivery.digest in error_of(delivery.ref)
    with delivery.ref.open("ab"):
        assert "busy" in run("mv", delivery.ref, delivery.blob).stderr
    delivery.finish()
    succeed("cp", delivery.source, delivery.ref)
    assert "File exists" in run("mv", delivery.ref, delivery.blob).stderr
    assert not delivery.ref.exists()


def test_cp_out_of_an_ingest_is_refused(delivery: Delivery, tmp_path: Path) -> None:
    succeed("cp", delivery.source, delivery.ref)
    for command in (["cp", delivery.ref, tmp_path / "copy"], ["cat", delivery.ref], ["sha256sum", delivery.ref]):
        done = run(*command)
        assert "Operation not permitted" in done.stderr
        assert done.stdout == ""
    assert (tmp_path / "copy").read_bytes() == b""
    assert run("mv", delivery.ref, tmp_path / "moved").returncode != 0
    delivery.finish()


def test_ls_shows_the_size_grow(delivery: Delivery) -> None:
    with subprocess.Popen(["tee", delivery.ref], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for count in (1000, 2000, 3000):
            writer.stdin.write(delivery.data[count - 1000 : count])
            writer.stdin.flush()
            assert len(writer.stdout.read(1000)) == 1000
            listed = succeed("ls", "-l", delivery.ref.parent).splitlines()
            line = next(line for line in listed if line.endswith(f" {delivery.mark}"))
            assert line.split()[0] == "--w-------"
            # tee writes to its stdout first and to the file second.
            assert int(line.split()[4]) in (count - 1000, count)
    succeed("rm", delivery.ref)


def test_find_du_and_a_recursive_listing_pass_by(delivery: Delivery) -> None:
    succeed("cp", delivery.source, delivery.ref)
    content = delivery.scene.mount.content
    assert str(delivery.ref) in succeed("find", content, "-size", f"{SIZE}c").splitlines()
    assert int(succeed("du", "-k", delivery.ref).split()[0]) >= SIZE // 1024
    assert delivery.mark in succeed("ls", "-lR", content)
    delivery.finish()
