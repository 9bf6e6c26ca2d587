"""Registry faults as a reader sees them: the errno, the message on the right object, and normal work afterwards."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.aio.flight import MEMORY
from imgfs.oci.descriptor import OCI_MANIFEST
from imgfs.testing.build import Image
from imgfs.testing.faults import (
    Action,
    Fault,
    close,
    endless,
    html,
    huge,
    longer,
    redirect,
    status,
    typed,
    wrong_bytes,
    wrong_length,
)
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import Scene, assert_verified, error_of, refused, serving, small, status_of, until

MEBIBYTE = 1 << 20
CANARY = "canary-in-the-query"


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, its errno, and a word of its message."""

    name: str
    action: Action
    code: int
    word: str


ANSWERS = [
    Case("401", status(401), errno.EACCES, "401"),
    Case("403", status(403), errno.EACCES, "403"),
    Case("404", status(404), errno.ENOENT, "404"),
    Case("429", status(429, Retry_After="0"), errno.EDQUOT, "429"),
    Case("500", status(500), errno.EREMOTEIO, "500"),
    Case("503", status(503, Retry_After="0"), errno.EREMOTEIO, "503"),
    Case("teapot", status(418), errno.EREMOTEIO, "418"),
    Case("reset", close(), errno.EHOSTUNREACH, "127.0.0.1"),
    Case("html", html(), errno.EBADMSG, "text/html"),
    Case("wrong", wrong_bytes(), errno.EBADMSG, "sha256:"),
    Case("scheme", redirect(f"ftp://127.0.0.1/x?{CANARY}"), errno.EREMOTEIO, "redirect"),
    Case("dead-end", redirect(f"http://127.0.0.1:9/x?{CANARY}"), errno.EHOSTUNREACH, "127.0.0.1:9"),
]
MANIFESTS = [
    Case("announced", huge(64 * MEBIBYTE), errno.EFBIG, "limit"),
    Case("unannounced", huge(64 * MEBIBYTE, announced=False), errno.EFBIG, "limit"),
    Case("endless", endless(), errno.EFBIG, "limit"),
    Case("no-json", status(200, b"{", Content_Type=OCI_MANIFEST), errno.EBADMSG, "manifest"),
    Case("empty", status(200, b"", Content_Type=OCI_MANIFEST), errno.EBADMSG, "manifest"),
    Case("kind", typed("application/vnd.oci.artifact.manifest.v1+json"), errno.EOPNOTSUPP, "vnd.oci.artifact"),
    Case("schema1", status(200, b'{"schemaVersion":1,"fsLayers":[]}'), errno.EOPNOTSUPP, "schema 1"),
]
BLOBS = [
    Case("short", wrong_length(20), errno.EBADMSG, "20 bytes"),
    Case("long", longer(5, announced=True), errno.EBADMSG, "bytes"),
    Case("long-chunked", longer(5), errno.EBADMSG, "more than"),
    Case("endless", endless(), errno.EBADMSG, "more than"),
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("errors")) as made:
        yield made
        assert sorted(os.listdir(made.mount.state.parent)) == ["mnt", "state"]
        assert_verified(made.mount.state)
        assert CANARY not in made.mount.log()


@dataclass(frozen=True, slots=True)
class Struck:
    """An image with a fault that lasts until it is repaired."""

    name: Path
    image: Image
    fault: Fault

    def mend(self) -> None:
        """End the fault."""
        self.fault.times = 0


@pytest.fixture(scope="module")
def struck() -> list[Struck]:
    """All objects with faults, for one check after the faults end."""
    return []


def strike(scene: Scene, kind: str, case: Case, struck: list[Struck]) -> Struck:
    """An image whose manifest, config or layer alone has the fault."""
    repository = f"{kind}/{case.name}"
    made = small(repository)
    name = scene.serve(made, repository)
    match = {
        "manifest": f"/v2/{repository}/manifests/",
        "config": str(made.layers[0].digest.of(made.config)),
        "layer": str(made.layers[0].digest),
    }[kind]
    struck.append(Struck(name, made, scene.registry.fault(case.action, match, times=None)))
    return struck[-1]


def others_work(scene: Scene, case: Case, kind: str) -> None:
    """Another image of the same registry is pulled without trouble."""
    mark = f"well/{kind}-{case.name}"
    assert (scene.serve(small(mark), mark) / "rootfs/mark").read_text() == f"{mark}/0\n"


@pytest.mark.parametrize("case", [*ANSWERS, *MANIFESTS], ids=lambda case: case.name)
def test_a_fault_of_the_manifest_is_told_at_its_host(scene: Scene, struck: list[Struck], case: Case) -> None:
    found = strike(scene, "manifest", case, struck)
    before = len(scene.registry.log)
    with refused(case.code):
        os.stat(found.name)
    told = error_of(scene.images / scene.registry.host)
    assert case.word in told
    assert "manifest" in told
    assert CANARY not in told
    assert sum(one.sent for one in scene.registry.log[before:]) < 16 * MEBIBYTE
    assert found.name.name not in os.listdir(scene.images / scene.registry.host)
    others_work(scene, case, "manifest")


@pytest.mark.parametrize("case", [*ANSWERS, *BLOBS], ids=lambda case: case.name)
def test_a_fault_of_a_layer_is_told_at_blob_and_image(scene: Scene, struck: list[Struck], case: Case) -> None:
    found = strike(scene, "layer", case, struck)
    with refused(case.code):
        os.listdir(f"{found.name}/rootfs/")
    blob = scene.blob(found.image.layers[0].digest)
    for told in (
        error_of(blob),
        error_of(found.name),
        status_of(found.name)["error"],
        (found.name / "status").read_text(),
    ):
        assert case.word in told
        assert CANARY not in told
    part = status_of(found.name)["parts"][2]
    assert (part["state"], case.word in part["error"]) == ("failed", True)
    assert blob.name not in os.listdir(blob.parent)
    others_work(scene, case, "layer")


@pytest.mark.parametrize("case", [*ANSWERS, *BLOBS], ids=lambda case: case.name)
def test_a_fault_of_a_blob_that_is_opened_is_told_at_it(scene: Scene, struck: list[Struck], case: Case) -> None:
    found = strike(scene, "config", case, struck)
    os.stat(found.name)
    with refused(case.code):
        (found.name / "config.json").read_bytes()
    told = error_of(found.name / "config.json")
    assert case.word in told
    assert CANARY not in told
    assert status_of(found.name)["parts"][1]["state"] == "failed"


def test_a_thousand_readers_of_a_dead_blob_make_one_attempt(scene: Scene) -> None:
    """One request for each period in which a failure is remembered: a slow host takes longer for a thousand readers."""
    made = small("dead")
    name = scene.serve(made, "dead")
    os.stat(name)
    scene.registry.fault(status(403), made.layers[0].digest, times=None)
    before, began = len(scene.registry.log), time.monotonic()
    for _ in range(1000):
        with refused(errno.EACCES):
            os.open(name / "layers/0", os.O_RDONLY)
    asked = [one.kind for one in scene.registry.log[before:]]
    assert set(asked) == {"blob"}
    assert len(asked) <= 1 + (time.monotonic() - began) / MEMORY


def test_everything_works_when_the_faults_are_over(scene: Scene, struck: list[Struck]) -> None:
    assert struck
    for one in struck:
        one.mend()
    for one in struck:
        mark = until((one.name / "rootfs/mark").read_bytes)
        assert mark in one.image.layers[0].tar
        assert until((one.name / "config.json").read_bytes) == one.image.config
        assert status_of(one.name)["complete"]
        assert [part["error"] for part in status_of(one.name)["parts"]] == [None] * 3
        assert error_of(one.name) == ""
        assert error_of(one.name / "config.json") == ""
    os.stat(scene.serve(small("the end"), "the-end"))
    assert error_of(scene.images / scene.registry.host) == ""


def test_a_registry_that_is_down_is_unreachable_and_not_an_absence(scene: Scene) -> None:
    made = small("down")
    with FakeRegistry() as registry:
        host, port = registry.host, int(registry.host.rpartition(":")[2])
    name = scene.images / host / "down:1"
    with refused(errno.EHOSTUNREACH):
        os.stat(name)
    assert host in error_of(name.parent)
    with FakeRegistry(port=port) as registry:
        made.add_to(registry, "down", "1")
        assert until((name / "config.json").read_bytes) == made.config
        assert error_of(name.parent) == ""
        assert (name / "rootfs/mark").read_bytes() == b"down/0\n"


def test_a_manifest_of_an_unknown_media_type_is_told_by_the_command(scene: Scene) -> None:
    unknown = "application/vnd.test.unknown.v1+json"
    document = json.dumps({"schemaVersion": 2, "mediaType": unknown}).encode()
    scene.registry.add_manifest("unknown", "1", document, unknown)
    name = scene.images / scene.registry.host / "unknown:1"
    shown = subprocess.run(["cat", name / "manifest.json"], capture_output=True, text=True, check=False)
    assert (shown.returncode, "Operation not supported" in shown.stderr) == (1, True)
    assert unknown in error_of(name.parent)
    done = scene.mount.run("pull", f"{scene.registry.host}/unknown:1")
    assert (done.returncode, unknown in done.stderr) == (1, True)


def test_touch_of_a_name_whose_registry_is_down_keeps_it(scene: Scene) -> None:
    made = small("kept")
    name = scene.serve(made, "kept")
    os.stat(name)
    fault = scene.registry.fault(status(500), "/v2/kept/", times=None)
    with refused(errno.EREMOTEIO):
        os.utime(name, follow_symlinks=False)
    assert "500" in error_of(name.parent)
    assert os.readlink(name) == f"../{made.digest}"
    fault.times = 0
    until(lambda: os.utime(name, follow_symlinks=False) is None)
    assert error_of(name.parent) == ""
