"""Names in images/: readlink, ln, mv, rm and touch, and which of these calls send requests to registries."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.oci.digest import Digest
from imgfs.testing.build import AMD64, ARM64, image, index
from tests.mount.scene import CONFIG, Scene, error_of, marked_layer, refused, run, serving, small, succeed

NOBODYS = Digest.of(b"a digest that nobody has")
OTHERS = Digest.of(b"another")
NEVER = Digest.of(b"one that no name mentions")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with serving(tmp_path_factory.mktemp("names")) as made:
        yield made


@pytest.mark.parametrize("repository", ["one", "two/parts", "a/b/c/d"])
def test_readlink_has_as_many_dots_as_the_name_has_slashes(scene: Scene, repository: str) -> None:
    made = small(repository)
    name = scene.serve(made, repository)
    target = os.readlink(name)
    assert target == "../" * (repository.count("/") + 1) + made.digest
    assert os.path.samefile(name, scene.directory(made.digest))
    assert os.lstat(name).st_size == len(target)


def test_a_lookup_sends_one_request_and_records_the_answer(scene: Scene) -> None:
    made = small("once")
    name = scene.serve(made, "once")
    with scene.requests("manifest"):
        os.lstat(name)
    with scene.silence():
        assert os.readlink(name).endswith(made.digest)
        assert (name / "manifest.json").read_bytes() == made.document
        assert name.name in os.listdir(name.parent)


def test_a_name_by_digest_is_resolved_too(scene: Scene) -> None:
    made = small("by-digest")
    digest = made.add_to(scene.registry, "by-digest")
    name = scene.name("by-digest").with_name(f"by-digest@{digest}")
    with scene.requests("manifest"):
        assert os.readlink(name) == f"../{digest}"


def test_a_tag_beside_a_digest_is_ignored(scene: Scene) -> None:
    made = small("pinned")
    digest = made.add_to(scene.registry, "pinned")
    name = scene.name("pinned").with_name(f"pinned:any@{digest}")
    with scene.requests("manifest"):
        assert os.readlink(name) == f"../{digest}"
    with scene.silence():
        assert (name / "manifest.json").read_bytes() == made.document
        assert f"pinned@{digest}" in os.listdir(name.parent)


def test_an_index_lookup_fetches_only_the_manifest_of_the_platform(scene: Scene) -> None:
    both = index([image([marked_layer(f"multi {one}")], platform=one) for one in (AMD64, ARM64)])
    name = scene.serve(both, "multi")
    with scene.requests("manifest", "manifest"):
        os.stat(name)


def test_names_that_the_registry_does_not_have_are_enoent(scene: Scene) -> None:
    with scene.requests("manifest"), refused(errno.ENOENT):
        os.stat(scene.name("nowhere"))
    assert "404" in error_of(scene.images / scene.registry.host)


@pytest.mark.parametrize(
    "path",
    ["team", "team/app", ".git", ".hidden", "team/.git", "Team", "App:1", "app:", "app:-x", "app@sha256:12", "x y"],
)
def test_lookup_of_an_invalid_reference_sends_no_request(scene: Scene, path: str) -> None:
    with scene.silence():
        os.path.lexists(scene.images / scene.registry.host / path)


@pytest.mark.parametrize("name", [".git", "mytool", "my tool", ".Trash-1000", "x" * 255, "é", "@"])
def test_lookup_of_a_local_name_sends_no_request(scene: Scene, name: str) -> None:
    with scene.silence(), refused(errno.ENOENT):
        os.lstat(scene.images / name)


def test_names_of_arbitrary_bytes_are_refused(scene: Scene) -> None:
    for name in (b"\xff\xfe", b"localhost/\xff:1", b"\n", b"localhost/app:\xff", b"y" * 256):
        path = os.fsencode(scene.images) + b"/" + name
        with scene.silence():
            assert not os.path.lexists(path)
        with pytest.raises(OSError):
            os.symlink(b"\xff", path)
    os.stat(scene.images)


def test_ln_creates_a_name_for_an_unknown_digest(scene: Scene) -> None:
    with scene.silence():
        succeed("ln", "-s", NOBODYS, scene.images / "shallow")
        assert os.readlink(scene.images / "shallow") == NOBODYS
        assert "shallow" in os.listdir(scene.images)
        assert NOBODYS in os.listdir(scene.images)
    with refused(errno.ENOENT):
        (scene.images / "shallow/manifest.json").read_bytes()


@pytest.mark.parametrize("form", ["{}", "../content/{}", "/somewhere/content/{}", "../../{}"])
def test_targets_in_any_form_are_read_in_canonical_form(scene: Scene, form: str) -> None:
    path = scene.images / "canonical"
    os.symlink(form.format(NOBODYS), path)
    assert os.readlink(path) == NOBODYS
    os.unlink(path)


def test_a_reference_as_target_is_resolved(scene: Scene) -> None:
    made = small("target")
    scene.serve(made, "target")
    with scene.requests("manifest"):
        os.symlink(f"{scene.registry.host}/target:1", scene.images / "aliased")
    assert os.readlink(scene.images / "aliased") == made.digest


@pytest.mark.parametrize(
    "form", ["linked:1", "./linked:1", "../{host}/linked:1", "../../images/{host}/linked:1", "{name}"]
)
def test_a_path_to_a_name_as_target_becomes_the_digest_of_that_name(scene: Scene, form: str) -> None:
    made = small("linked")
    name = scene.serve(made, "linked")
    os.lstat(name)
    os.symlink(form.format(host=scene.registry.host, name=name), name.with_name("alias:1"))
    assert os.readlink(name.with_name("alias:1")) == f"../{made.digest}"
    os.unlink(name.with_name("alias:1"))


def test_a_relative_target_below_a_host_is_resolved_at_that_host(scene: Scene) -> None:
    made = small("asked")
    name = scene.serve(made, "asked")
    with scene.requests("manifest", "manifest"):  # the link's own name is looked up before it is created
        os.symlink("asked:1", name.with_name("alias:2"))
    assert os.readlink(name.with_name("alias:2")) == f"../{made.digest}"


@pytest.mark.parametrize("target", ["sha256:12", "sha256:" + "A" * 64, "sha512:" + "0" * 64, "Not A Reference", "/"])
def test_malformed_targets_are_invalid(scene: Scene, target: str) -> None:
    with scene.silence(), refused(errno.EINVAL):
        os.symlink(target, scene.images / "malformed")


def test_ln_does_not_replace_an_existing_name(scene: Scene) -> None:
    path = scene.images / "taken"
    os.symlink(NOBODYS, path)
    with refused(errno.EEXIST):
        os.symlink(OTHERS, path)
    assert run("ln", "-s", OTHERS, path).returncode != 0
    assert os.readlink(path) == NOBODYS


def test_creating_a_name_that_its_registry_has_is_eexist(scene: Scene) -> None:
    made = small("exists")
    name = scene.serve(made, "exists")
    with refused(errno.EEXIST):
        os.symlink(NOBODYS, name)
    assert os.readlink(name) == f"../{made.digest}"


@pytest.mark.parametrize("local", [True, False])
def test_ln_sfn_replaces_atomically_and_leaves_no_temporary_link(scene: Scene, local: bool) -> None:
    made = small("replaced")
    name = scene.images / "replaced" if local else scene.serve(made, "replaced/deep")
    up = "" if local else "../../"
    for digest in (NOBODYS, OTHERS, NOBODYS):
        succeed("ln", "-sfn", digest, name)
        assert os.readlink(name) == up + digest
        assert os.listdir(name.parent) == [name.name] or not any(
            one.startswith("Cu") for one in os.listdir(name.parent)
        )


def test_readers_of_a_name_see_the_old_or_the_new_target_during_a_replacement(scene: Scene) -> None:
    name = scene.images / "steady"
    os.symlink(NOBODYS, name)
    for digest in (OTHERS, NOBODYS) * 20:
        beside = scene.images / "steady-beside"
        os.symlink(digest, beside)
        os.rename(beside, name)
        assert os.readlink(name) == digest
    assert not os.path.lexists(scene.images / "steady-beside")


def test_mv_renames_within_images(scene: Scene) -> None:
    made = small("moved")
    name = scene.serve(made, "moved")
    os.stat(name)
    with scene.silence():
        succeed("mv", "-T", name, scene.images / "moved-here")
        assert os.readlink(scene.images / "moved-here") == made.digest
        assert name.name not in os.listdir(name.parent)
    with scene.requests("manifest"):  # the daemon asks the registry whether the new name exists
        succeed("mv", "-T", scene.images / "moved-here", scene.name("moved-to/app"))
    assert os.readlink(scene.name("moved-to/app")) == f"../../{made.digest}"
    assert os.listdir(scene.name("moved-to/app").parent) == ["app:1"]


def test_mv_onto_an_existing_name_replaces_it(scene: Scene) -> None:
    os.symlink(NOBODYS, scene.images / "from")
    os.symlink(OTHERS, scene.images / "onto")
    succeed("mv", "-T", scene.images / "from", scene.images / "onto")
    assert os.readlink(scene.images / "onto") == NOBODYS
    assert not os.path.lexists(scene.images / "from")


def test_mv_n_keeps_an_existing_name(scene: Scene) -> None:
    os.symlink(NOBODYS, scene.images / "unmoved")
    os.symlink(OTHERS, scene.images / "kept")
    run("mv", "-nT", scene.images / "unmoved", scene.images / "kept")
    assert os.readlink(scene.images / "kept") == OTHERS
    assert os.readlink(scene.images / "unmoved") == NOBODYS


@pytest.mark.parametrize("target", ["localhost/App:1", "localhost/app:b@d", NEVER, "../content/name", "../name"])
def test_mv_to_a_malformed_target_is_refused_and_keeps_the_source(scene: Scene, target: str) -> None:
    source = scene.images / "stays"
    if not os.path.lexists(source):
        os.symlink(NOBODYS, source)
    with refused(errno.EPERM):
        os.rename(source, scene.images / target)
    done = run("mv", "-T", source, scene.images / target)
    assert done.returncode != 0
    assert "not permitted" in done.stderr
    assert os.readlink(source) == NOBODYS


def test_mv_out_of_the_tree_copies_the_link(scene: Scene, tmp_path: Path) -> None:
    """The kernel returns EXDEV for two filesystems without a request to imgfs. Then mv creates the link at the target
    and removes the source.
    """
    os.symlink(NOBODYS, scene.images / "leaving")
    succeed("mv", "-T", scene.images / "leaving", tmp_path / "arrived")
    assert os.readlink(tmp_path / "arrived") == NOBODYS


def test_moving_a_directory_of_names_is_refused(scene: Scene) -> None:
    directory = scene.name("heap/app").parent
    os.symlink(NOBODYS, directory / "app:1")
    for target in (directory.with_name("heap-moved"), scene.images / "heap-moved"):
        with refused(errno.EPERM):
            os.rename(directory, target)
        assert run("mv", "-T", directory, target).returncode != 0
    assert os.readlink(directory / "app:1").endswith(NOBODYS)


def test_rm_deletes_the_name_and_no_content(scene: Scene) -> None:
    made = small("removed")
    name = scene.serve(made, "removed")
    (name / "config.json").read_bytes()
    before = sorted(os.listdir(scene.mount.content))
    with scene.silence():
        succeed("rm", name)
        assert sorted(os.listdir(scene.mount.content)) == before
    with refused(errno.ENOENT):
        os.unlink(scene.images / "never-there")


def test_removing_a_tree_of_names_removes_names_only(scene: Scene) -> None:
    for name in (scene.name("tree/x"), scene.name("tree/deep/er/y")):
        os.symlink(NOBODYS, name)
    top = scene.name("tree/x").parent
    with refused(errno.ENOTEMPTY):
        os.rmdir(top)
    with scene.silence():
        succeed("rm", "-r", top)
    assert "tree" not in os.listdir(top.parent)


def test_touch_h_refreshes_one_name_and_touch_refreshes_every_name(scene: Scene) -> None:
    made = small("touched")
    names = [scene.serve(made, "touched", tag) for tag in ("1", "2")]
    for name in names:
        os.stat(name)
    with scene.requests("tag"):
        succeed("touch", "-h", names[0])
    with scene.requests("tag", "tag"):
        succeed("touch", names[0])


def test_touch_follows_a_tag_that_moved(scene: Scene) -> None:
    name = scene.serve(small("old"), "moving")
    os.stat(name)
    new = small("new")
    scene.serve(new, "moving")
    with scene.silence():
        assert not os.readlink(name).endswith(new.digest)
    with scene.requests("tag", "manifest"):
        succeed("touch", "-h", name)
    assert os.readlink(name) == f"../{new.digest}"


def test_touch_of_a_local_name_sends_no_request(scene: Scene) -> None:
    os.symlink(NOBODYS, scene.images / "untouched")
    with scene.silence():
        succeed("touch", "-h", scene.images / "untouched")


def test_only_symlinks_can_be_created_in_images(scene: Scene) -> None:
    for make in (os.mkdir, os.mkfifo, lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY))):
        with refused(errno.EPERM):
            make(scene.images / "made")
    os.symlink(NOBODYS, scene.images / "linked")
    with refused(errno.EPERM):
        os.link(scene.images / "linked", scene.images / "made", follow_symlinks=False)
    with refused(errno.EPERM):
        os.chown(scene.images / "linked", 1, 1, follow_symlinks=False)
    with refused(errno.EEXIST):
        os.mkdir(scene.images / scene.registry.host)


@pytest.mark.parametrize("name", ["App:1", "app:", "app@sha256:1", "team/app:-"])
def test_malformed_names_are_invalid(scene: Scene, name: str) -> None:
    with scene.silence(), refused(errno.EINVAL):
        os.symlink(NOBODYS, scene.images / "localhost" / name)


def test_a_local_name_with_a_numeric_tag_is_refused_as_host_and_port(scene: Scene) -> None:
    """`images/registry:5000/app:1` has the same beginning, so a path cannot tell the two apart."""
    digest = Digest.of(b"whatever")
    done = subprocess.run(["ln", "-s", digest, scene.images / "mytool:1"], capture_output=True, check=False)
    assert (done.returncode, b"Invalid argument" in done.stderr) == (1, True)
    assert "'mytool:1': is a registry's host (a number behind `:` is its port)" in error_of(scene.images / "mytool:1")
    with refused(errno.EINVAL):
        os.setxattr(scene.images, "user.imgfs.tag", f"mytool:1 {digest}".encode())
    assert "mytool:1" not in os.listdir(scene.images)
    os.symlink(digest, scene.images / "mytool:v1")
    assert os.readlink(scene.images / "mytool:v1") == digest


def test_ln_at_a_repository_without_a_tag_is_eexist(scene: Scene) -> None:
    with scene.silence(), refused(errno.EEXIST):
        os.symlink(NOBODYS, scene.images / "localhost/app")


def test_a_temporary_link_is_unlisted_and_can_be_removed(scene: Scene) -> None:
    beside = scene.name("any").with_name("CuAbCdEf")
    with scene.silence():
        os.symlink(NOBODYS, beside)
        assert os.readlink(beside) == f"../{NOBODYS}"
        assert not os.path.exists(beside.parent) or beside.name not in os.listdir(beside.parent)
        with refused(errno.EEXIST):
            os.symlink(OTHERS, beside)
        os.unlink(beside)
        assert not os.path.lexists(beside)


def test_rmdir_of_an_image_directory_with_names_is_refused(scene: Scene) -> None:
    made = small("dir")
    os.stat(scene.serve(made, "dir"))
    with refused(errno.EPERM):
        os.rmdir(scene.directory(made.digest))


def test_the_directory_of_an_unknown_digest_is_enoent(scene: Scene) -> None:
    with scene.silence(), refused(errno.ENOENT):
        os.stat(scene.directory(NEVER))


def test_walking_sends_no_request(scene: Scene) -> None:
    made = small("walked", layers=2)
    name = scene.serve(made, "walked/here")
    os.listdir(f"{name}/rootfs/")
    (scene.blob(made.layers[0].digest)).read_bytes()
    with scene.silence():
        listing = succeed("ls", "-lR", scene.images, scene.mount.content, scene.mount.snapshots)
        assert f"here:1 -> ../../{made.digest}" in listing
        found = succeed("find", scene.mount.path, "-path", scene.mount.path / "snapshots", "-prune", "-o", "-print")
        assert f"{scene.directory(made.digest)}/layers/1\n" in found
        succeed("find", scene.mount.snapshots)
        succeed("du", "-a", scene.mount.path)
        succeed("tar", "-cf", "/dev/null", "-C", scene.mount.path, "images", "snapshots")
        globbed = succeed("sh", "-c", f"cd {scene.images} && echo */* * ./.*")
        assert f"{scene.registry.host}/walked " in globbed


def test_stat_of_stored_names_has_sizes_and_types(scene: Scene) -> None:
    made = small("typed")
    name = scene.serve(made, "typed")
    os.stat(name)
    sizes = succeed("stat", "-c", "%F %s %a", name, f"{name}/", f"{name}/manifest.json", f"{name}/config.json")
    assert sizes.splitlines() == [
        f"symbolic link {len(made.digest) + 3} 777",
        "directory 0 755",
        f"regular file {len(made.document)} 444",
        f"regular file {len(made.config)} 444",
    ]


def test_names_survive_a_remount_and_work_offline(tmp_path: Path) -> None:
    with serving(tmp_path) as scene:
        made = small("offline")
        name = scene.serve(made, "offline")
        content = (name / "rootfs/mark").read_bytes()
        os.symlink(NOBODYS, scene.images / "local")
        scene.mount.stop()
        scene.mount.start()
        with scene.silence():
            assert os.readlink(name) == f"../{made.digest}"
            assert os.readlink(scene.images / "local") == NOBODYS
            assert (name / "rootfs/mark").read_bytes() == content
            assert (name / "config.json").read_bytes() == made.config


def test_resolve_registered_sends_no_request_for_unknown_names(tmp_path: Path) -> None:
    with serving(tmp_path, f'{CONFIG}resolve = "registered"\n') as scene:
        made = small("registered")
        name = scene.serve(made, "registered")
        with scene.silence(), refused(errno.ENOENT):
            os.stat(name)
        with scene.silence():
            succeed("ln", "-s", made.digest, name)
        assert (name / "rootfs/mark").read_bytes() == b"registered/0\n"
        with scene.silence(), refused(errno.ENOENT):
            os.stat(name / f"referrers/{NOBODYS}.json")
        with scene.requests("tag"):
            succeed("touch", "-h", name)
