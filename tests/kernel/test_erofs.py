"""EROFS mounts from files: the order of devices, restrictions, and the error of each refusal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.errors import Busy, ImgfsError, Invalid, Malformed, NotFound, Unsupported
from imgfs.kernel.erofs import detached_erofs
from imgfs.kernel.mounts import mount_at, unmount
from imgfs.kernel.overlay import mount_overlay
from imgfs.testing.images import File, image, layer
from imgfs.testing.registry import FakeRegistry
from tests.kernel.pieces import content_of, directory, erofs_image, mount_erofs, mounts_of, options, powerless
from tests.support.mounted import Mounted
from tests.support.programs import run


@pytest.fixture
def target(place: Path) -> Path:
    return directory(place / "target")


@pytest.mark.parametrize("count", [1, 2, 500])
def test_each_file_comes_from_its_own_device(place: Path, target: Path, count: int) -> None:
    devices = erofs_image(place / "image", count)
    mount_erofs(place / "image", devices, str(target), trusted=True)
    assert len(os.listdir(target)) == count
    assert [(target / f"{number:03}").read_bytes() for number in range(count)] == [*map(content_of, range(count))]


def test_an_image_of_mkfs_is_mounted(place: Path, target: Path) -> None:
    source = directory(place / "source", some="text")
    (source / "large").write_bytes(os.urandom(300_000))
    run("mkfs.erofs", "--quiet", "--chunksize=4096", f"--blobdev={place}/blob", place / "image", source)
    mount_erofs(place / "image", [place / "blob"], str(target), trusted=True)
    run("diff", "-r", source, target)


def test_restart_finds_a_view_by_its_image(place: Path, target: Path) -> None:
    mount_erofs(place / "image", erofs_image(place / "image", 1), str(target), trusted=True)
    found = mount_at(str(target))
    assert found is not None
    assert (found.filesystem, found.source) == ("erofs", str(place / "image"))


@pytest.mark.parametrize(("trusted", "expected"), [(True, set[str]()), (False, {"nosuid", "nodev"})])
def test_view_is_read_only_and_setuid_only_where_trusted(
    place: Path, target: Path, trusted: bool, expected: set[str]
) -> None:
    mount_erofs(place / "image", erofs_image(place / "image", 1), str(target), trusted=trusted)
    assert options(target) & {"ro", "nosuid", "nodev"} == {"ro"} | expected
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()


def test_paths_of_any_length_and_letter(place: Path, target: Path) -> None:
    deep = place / "a,b:c\\d" / ("x" * 200) / ("y" * 200)
    deep.mkdir(parents=True)
    mount_erofs(deep / "image", erofs_image(deep / "image", 2), str(target), trusted=True)
    assert (target / "001").read_bytes() == content_of(1)


def test_a_detached_mount_has_no_path_and_ends_with_its_descriptor(place: Path) -> None:
    devices = erofs_image(place / "image", 1)
    before = mounts_of(place)
    with detached_erofs(place / "image", devices, trusted=True) as mount:
        assert os.listdir(f"/proc/self/fd/{mount.fileno()}") == ["000"]
        assert mounts_of(place) == before
    mount.close()


def refuse(image_path: Path, devices: list[Path], target: Path) -> ImgfsError:
    """Return the error of a failed mount, and check that no mount is left."""
    before, descriptors = mounts_of(target.parent), len(os.listdir("/proc/self/fd"))
    with pytest.raises(ImgfsError) as caught:
        mount_erofs(image_path, devices, str(target), trusted=True)
    assert (mounts_of(target.parent), len(os.listdir("/proc/self/fd"))) == (before, descriptors)
    return caught.value


def test_missing_files_are_named(place: Path, target: Path) -> None:
    devices = erofs_image(place / "image", 1)
    assert isinstance(refuse(place / "none", devices, target), NotFound)
    for error in (refuse(place / "image", [place / "none"], target), refuse(place / "image", devices, place / "none")):
        assert isinstance(error, NotFound)
        assert "No such file" in error.message


def test_device_of_any_length_that_is_missing_is_named(place: Path, target: Path) -> None:
    erofs_image(place / "image", 1)
    missing = place / ("x" * 200) / ("y" * 200)
    error = refuse(place / "image", [missing], target)
    assert isinstance(error, NotFound)
    assert error.message.startswith(str(missing))


@pytest.mark.parametrize("given", [0, 1, 3])
def test_as_many_devices_as_the_table_has(place: Path, target: Path, given: int) -> None:
    devices = erofs_image(place / "image", 2)
    error = refuse(place / "image", [*devices, *devices][:given], target)
    assert isinstance(error, Malformed)
    assert f"has 2 devices in its table, {given} were given" in error.message


@pytest.mark.parametrize("damage", ["empty", "magic", "feature"])
def test_damaged_image_is_refused(place: Path, target: Path, damage: str) -> None:
    devices = erofs_image(place / "image", 1)
    content = bytearray((place / "image").read_bytes())
    if damage == "feature":
        content[1024 + 83] = 0x80
    else:
        content[1024] ^= 1
    (place / "image").write_bytes(b"" if damage == "empty" else content)
    error = refuse(place / "image", devices, target)
    assert isinstance(error, Malformed | Invalid)
    assert error.message.startswith(f"{place}/image: ")
    assert "build it again" in error.message


def test_file_is_no_mountpoint(place: Path) -> None:
    devices = erofs_image(place / "image", 1)
    error = refuse(place / "image", devices, devices[0])
    assert "mount a directory over a directory" in error.message


def test_view_in_use_stays(place: Path, target: Path) -> None:
    mount_erofs(place / "image", erofs_image(place / "image", 1), str(target), trusted=True)
    with (target / "000").open("rb"), pytest.raises(Busy):
        unmount(str(target))
    unmount(str(target))


def test_image_on_an_overlay_is_refused_with_the_reason(place: Path, target: Path) -> None:
    upper, work, over = (directory(place / name) for name in ("upper", "work", "over"))
    mount_overlay([str(directory(place / "lower"))], str(over), upper=upper, work=work, trusted=True)
    error = refuse(over / "image", erofs_image(over / "image", 1), target)
    assert isinstance(error, Unsupported)
    assert "not on overlayfs" in error.message


def test_without_the_capability_the_error_names_it(place: Path, target: Path) -> None:
    erofs_image(place / "image", 1)
    code = """
import sys
from pathlib import Path
from imgfs.errors import NotPermitted
from imgfs.kernel.erofs import detached_erofs
try:
    with detached_erofs(Path(sys.argv[1]), [Path(sys.argv[1] + ".0")], trusted=True) as mount:
        mount.attach(sys.argv[2])
except NotPermitted as error:
    print(error.message)
"""
    assert "CAP_SYS_ADMIN" in powerless(code, place / "image", target)


def test_an_overlay_over_erofs_with_devices_served_by_the_daemon(
    place: Path, target: Path, registry: FakeRegistry, mounted: Mounted
) -> None:
    devices = erofs_image(place / "image", 2)
    made = image([layer([File("data", os.urandom(100_000))])])
    made.add_to(registry, "box", "1")
    blob = (mounted.image(f"{registry.host}/box:1") / "layers/0").resolve()
    upper, work = directory(place / "upper"), directory(place / "work")
    with detached_erofs(place / "image", [blob, devices[1]], trusted=True) as lower:
        mount_overlay([lower], str(target), upper=upper, work=work, trusted=True)
    assert (target / "000").read_bytes() == blob.read_bytes()[:4096]
    (target / "000").write_bytes(b"changed")
    assert os.listdir(upper) == ["000"]
    with pytest.raises(Busy):
        unmount(str(mounted.path))
    unmount(str(target))
