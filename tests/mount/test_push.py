"""Pushes through a real mount to real registries. skopeo and containerd read the same bytes back."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.faults import stall
from imgfs.testing.images import ARM64, BuiltIndex, File, Image, image, index, layer
from imgfs.testing.reply import Reply
from imgfs.testing.uploads import PushRegistry
from tests.mount.private import PASSWORD, USER, Home, registry_with_passwords, registry_with_tokens
from tests.mount.scene import CONFIG, error_of, refused, run, until
from tests.support.mounted import IMGFS, PATIENCE, Mounted
from tests.support.oracles import pulled_by_ctr
from tests.support.programs import run as run_program
from tests.support.proxy import CountingProxy, counting_proxy
from tests.support.servers import DockerRegistry, Upload, docker_registry

LARGE = 40 << 20
"""Size in bytes of a layer that imgfs uploads in several parts."""
SENT = ["PATCH upload"] * 2 + ["POST upload"] * 2 + ["PUT upload"] * 2
"""Requests of an upload of such a layer and a config, sorted."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A mount, a source registry, and a target registry behind a proxy that records requests."""

    mounted: Mounted
    source: DockerRegistry
    target: CountingProxy

    def serve(self, made: Image | BuiltIndex, repository: str) -> str:
        """Upload an image to the source registry and return its name."""
        made.add_to(Upload(self.source.host, repository), repository, "1")
        return f"{self.source.host}/{repository}:1"

    def push(self, *arguments: str | Path) -> dict[str, Any]:
        """Run `imgfs push --format json`, check that it succeeds, and return its report."""
        done = self.mounted.run("push", "--format", "json", *map(str, arguments))
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    def asked(self) -> list[str]:
        """Return the methods of the requests to the target since the last call."""
        seen = [one.method for one in self.target.requests]
        self.target.requests.clear()
        return seen


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("push")
    with (
        docker_registry(directory / "source") as source,
        docker_registry(directory / "target") as target,
        counting_proxy(target.host) as proxy,
        Mounted(directory, CONFIG) as mounted,
    ):
        mounted.start()
        yield Scene(mounted, source, proxy)


def assert_pulled(made: Image | BuiltIndex, name: str, directory: Path, login: str = "") -> None:
    """Check that skopeo pulls the image with identical bytes."""
    images = made.images if isinstance(made, BuiltIndex) else (made,)
    options = ["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--src-tls-verify=false"]
    run_program("skopeo", *options, *(["--src-creds", login] if login else []), f"docker://{name}", f"dir:{directory}")
    assert (directory / "manifest.json").read_bytes() == made.document
    for one in images:
        assert {digest: (directory / digest.hex).read_bytes() for digest in one.blobs} == one.blobs


def of_two(mark: str, **more: Any) -> Image:
    return image([layer([File(f"{mark}-{n}", f"{mark} {n}\n".encode() * 500)]) for n in range(2)], **more)


def test_pulled_image_is_pushed_to_another_registry(scene: Scene, tmp_path: Path) -> None:
    made, target = of_two("pulled"), f"{scene.target.host}/pulled:1"
    name = scene.serve(made, "pulled")
    assert scene.mounted.run("pull", name).returncode == 0
    report = scene.push(name, target)
    assert (report["name"], report["digest"]) == (target, made.digest)
    assert report["sent"] == len(made.document) + sum(map(len, made.blobs.values()))
    assert_pulled(made, target, tmp_path / "dir")
    scene.asked()
    again = scene.push(name, target)
    assert (again["sent"], [part["outcome"] for part in again["parts"]]) == (0, ["present"])
    assert scene.asked() == ["HEAD"]


def test_push_file_is_readable_but_find_and_grep_do_not_trigger_it(scene: Scene, tmp_path: Path) -> None:
    made = of_two("file")
    name = scene.serve(made, "file")
    door = scene.mounted.image(name) / "push"
    assert os.listdir(door) == []
    scene.asked()
    run("find", scene.mounted.path / "images", "-ls")
    run("grep", "-r", "nothing", os.path.realpath(scene.mounted.image(name)))
    (door / scene.target.host / "file:1").stat()
    assert scene.asked() == []
    report = json.loads(run_program("cat", door / scene.target.host / "file:1"))
    assert report["digest"] == made.digest
    assert_pulled(made, f"{scene.target.host}/file:1", tmp_path / "dir")
    with refused(errno.EPERM):
        (door / scene.target.host / "file:1").write_bytes(b"")
    for odd in ("x", "push", f"{scene.target.host}/File:1", f"{scene.target.host}/a:b:c"):
        assert not (door / odd).exists()
    assert not (scene.mounted.image(name) / "push:nonsense").exists()


def test_push_within_a_registry_mounts_the_layers(scene: Scene, tmp_path: Path) -> None:
    made = of_two("within")
    made.add_to(Upload(scene.target.upstream, "within/from"), "within/from", "1")
    name = f"{scene.target.host}/within/from:1"
    os.readlink(scene.mounted.image(name))
    scene.asked()
    report = scene.push(name, f"{scene.target.host}/within/to:2")
    assert report["mounted"] == sum(map(len, made.blobs.values()))
    assert scene.asked().count("PUT") == 1
    assert_pulled(made, f"{scene.target.host}/within/to:2", tmp_path / "dir")


def test_an_index_is_pushed_whole_or_for_one_platform(scene: Scene, tmp_path: Path) -> None:
    ours, theirs = of_two("ours"), of_two("theirs", platform=ARM64)
    made = index([ours, theirs])
    name = scene.serve(made, "index")
    assert scene.push(name, f"{scene.target.host}/index:ours")["digest"] == ours.digest
    assert scene.push("--platform", "linux/arm64", name, f"{scene.target.host}/index:theirs")["digest"] == theirs.digest
    assert scene.push("--all-platforms", name, f"{scene.target.host}/index:all")["digest"] == made.digest
    assert_pulled(ours, f"{scene.target.host}/index:ours", tmp_path / "ours")
    assert_pulled(theirs, f"{scene.target.host}/index:theirs", tmp_path / "theirs")
    assert_pulled(made, f"{scene.target.host}/index:all", tmp_path / "all")


def test_docker_media_types_are_preserved(scene: Scene, tmp_path: Path) -> None:
    made = index([of_two("docker", docker=True)], docker=True)
    scene.push("--all-platforms", scene.serve(made, "docker"), f"{scene.target.host}/docker:1")
    assert_pulled(made, f"{scene.target.host}/docker:1", tmp_path / "dir")


def test_an_imported_image_is_pushed_and_containerd_reads_it(scene: Scene, tmp_path: Path) -> None:
    made = of_two("imported")
    made.write_layout(tmp_path / "layout", "latest")
    done = scene.mounted.run("import", str(tmp_path / "layout"), "imported")
    assert done.returncode == 0, done.stderr
    target = f"{scene.target.host}/imported:1"
    assert scene.push("imported", target)["sent"] > 0
    assert_pulled(made, target, tmp_path / "dir")
    assert pulled_by_ctr(target, tmp_path / "ctr") == {made.digest: made.document, **made.blobs}


def test_large_layer_is_uploaded_in_parts(scene: Scene, tmp_path: Path) -> None:
    made = image([layer([File("noise", random.Random(1).randbytes(LARGE))], "none")])
    scene.push(scene.serve(made, "large"), f"{scene.target.host}/large:1")
    assert scene.asked().count("PATCH") == 2
    assert_pulled(made, f"{scene.target.host}/large:1", tmp_path / "dir")


def test_table_output_shows_the_outcome_of_each_part(scene: Scene) -> None:
    made = of_two("table")
    name = scene.serve(made, "table")
    done = scene.mounted.run("push", name, f"{scene.target.host}/table:1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["sent"] * 4
    assert [line.split()[1] for line in lines[1:-1]][-1] == "manifest"
    assert lines[-1].startswith(f"{scene.target.host}/table:1 is {made.digest}: ")


def test_invalid_arguments_are_reported(scene: Scene, tmp_path: Path) -> None:
    made = of_two("words")
    name = scene.serve(made, "words")
    made.write_layout(tmp_path / "layout", "latest")
    assert scene.mounted.run("import", str(tmp_path / "layout"), "words").returncode == 0
    unsaid = scene.mounted.run("push", "words")
    assert (unsaid.returncode, "give the target" in unsaid.stderr) == (2, True)
    wrong = scene.mounted.run("push", name, f"{scene.target.host}/words@{Digest.of(b'else')}")
    assert (wrong.returncode, made.digest in wrong.stderr) == (2, True)
    assert scene.mounted.run("push", "--platform", "linux/s390x", name).returncode == 3
    assert scene.mounted.run("push", "--platform", "linux/s390x", "--all-platforms", name).returncode == 2


def test_unreachable_registry_gives_exit_status_5(scene: Scene) -> None:
    name = scene.serve(of_two("dead"), "dead")
    done = scene.mounted.run("push", name, "127.0.0.1:1/dead:1")
    assert (done.returncode, done.stdout) == (5, "")
    assert "127.0.0.1:1" in done.stderr
    assert "127.0.0.1:1" in error_of(scene.mounted.image(name) / "push/127.0.0.1:1/dead:1")


def test_pull_through_cache_rejects_pushes(scene: Scene, tmp_path: Path) -> None:
    name = scene.serve(of_two("cache"), "cache")
    with docker_registry(tmp_path / "cache", remote=f"http://{scene.source.host}") as cache:
        done = scene.mounted.run("push", name, f"{cache.host}/other:1")
    assert (done.returncode, done.stdout) == (5, "")
    assert all(word in done.stderr for word in (cache.host, "405", "it takes none", "push to a registry that does"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, monkeypatch)


def test_private_registry_accepts_pushes_only_after_login(tmp_path: Path, home: Home, scene: Scene) -> None:
    made = of_two("private")
    name = scene.serve(made, "private")
    with (
        registry_with_passwords(tmp_path) as (passworded, _),
        registry_with_tokens(tmp_path / "second") as (guarded, tokens, _),
        Mounted(tmp_path, CONFIG) as mounted,
    ):
        mounted.start()
        denied = mounted.run("push", name, f"{passworded.host}/box:1")
        assert (denied.returncode, denied.stdout) == (4, "")
        assert f"`skopeo login {passworded.host}`" in denied.stderr
        for registry in (passworded, guarded):
            home.log_in(registry.host)
            done = mounted.run("push", name, f"{registry.host}/box:1")
            assert done.returncode == 0, done.stderr
            assert_pulled(made, f"{registry.host}/box:1", tmp_path / f"dir-{registry.port}", f"{USER}:{PASSWORD}")
        tokens.shown.clear()
        done = mounted.run("push", "--format", "json", f"{guarded.host}/box:1", f"{guarded.host}/other:1")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["mounted"] == sum(map(len, made.blobs.values()))
        assert "repository:other:pull,push repository:box:pull" in [one.scope for one in tokens.shown]


@pytest.fixture
def pushes() -> Iterator[PushRegistry]:
    with PushRegistry() as pushes:
        yield pushes


def test_ctrl_c_ends_a_push_and_the_next_push_resumes_it(scene: Scene, pushes: PushRegistry) -> None:
    made = of_two("interrupted")
    name = scene.serve(made, "interrupted")
    pushes.fault(lambda reply: Reply(201, hold=-1), "PUT .*uploads/", times=None)
    command = [*IMGFS, "push", name, f"{pushes.host}/box:1"]
    environment = os.environ | {"IMGFS_MOUNTPOINT": str(scene.mounted.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        stalled = pushes.valve.wait_arrival()
        assert stalled is not None
        process.send_signal(signal.SIGINT)
        output, complaint = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output, complaint) == (130, b"", b"imgfs: interrupted\n")
        until(lambda: stalled.abandoned)
    pushes.reset()
    done = scene.mounted.run("push", name, f"{pushes.host}/box:1")
    assert done.returncode == 0, done.stderr
    assert pushes.manifest("box", "1") == (made.document, made.media_type)
    assert pushes.asked("upload").count("GET upload") >= 1
    files = [path for path in scene.mounted.state.rglob("*") if path.is_file()]
    assert not [path for path in files if b"canary-session" in path.read_bytes()]


def test_push_resumes_after_the_daemon_is_killed(scene: Scene, pushes: PushRegistry, tmp_path: Path) -> None:
    made = image([layer([File("noise", random.Random(2).randbytes(LARGE))], "none")])
    name = scene.serve(made, "killed")
    with Mounted(tmp_path, CONFIG) as mounted:
        mounted.start()
        pushes.fault(lambda reply: Reply(201, hold=-1), "PUT .*uploads/", times=None)
        with subprocess.Popen(["cat", mounted.image(name) / "push" / pushes.host / "box:1"]) as process:
            until(lambda: sorted(pushes.asked("upload")) == SENT)
            mounted.kill()
            assert process.wait(PATIENCE) != 0
        assert (mounted.state / "imgfs.db").stat().st_mode & 0o077 == 0
        pushes.reset()
        mounted.start()
        done = mounted.run("push", name, f"{pushes.host}/box:1")
        assert done.returncode == 0, done.stderr
    assert pushes.manifest("box", "1") == (made.document, made.media_type)
    assert pushes.sent() < LARGE // 10
    assert "PATCH upload" not in pushes.asked("upload")


def test_progress_is_reported_during_a_push(scene: Scene, pushes: PushRegistry) -> None:
    made = of_two("progress")
    name = scene.serve(made, "progress")
    door = scene.mounted.image(name) / "push" / pushes.host / "box:1"
    pushes.fault(stall(), "PUT .*uploads/")
    with subprocess.Popen(["cat", door], stdout=subprocess.PIPE) as process:
        assert pushes.valve.wait_arrival() is not None
        told = until(lambda: json.loads(os.getxattr(door, "user.imgfs.progress")))
        assert told["total"] == sum(map(len, made.blobs.values()))
        assert told["running"] >= 1
        status = json.loads(scene.mounted.run("status", "--format", "json").stdout)
        sent = [one for one in status["transfers"] if one["direction"] == "push"]
        assert {(one["host"], one["repository"], one["names"][0]) for one in sent} == {(pushes.host, "box", name)}
        pushes.release()
        output, _ = process.communicate(timeout=PATIENCE)
    assert json.loads(output)["digest"] == made.digest
    assert "user.imgfs.progress" not in os.listxattr(door)


def test_only_the_user_who_mounted_may_push(tmp_path: Path, pushes: PushRegistry, scene: Scene) -> None:
    made = of_two("stranger")
    name = scene.serve(made, "stranger")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    with Mounted(tmp_path, f'{CONFIG}access = "all"\n') as mounted:
        mounted.start()
        door = mounted.image(name) / "push"
        assert (mounted.image(name) / "manifest.json").read_bytes() == made.document
        done = subprocess.run(
            ["cat", door / pushes.host / "box:1"], capture_output=True, text=True, check=False, user=65534, group=65534
        )
        assert done.returncode == 1
        assert "Permission denied" in done.stderr
    assert pushes.log == []
