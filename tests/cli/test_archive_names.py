"""What an imported image is called, and what `docker load` reads as the name of an exported one."""

from __future__ import annotations

import pytest

from imgfs.archives.layout import Listed
from imgfs.cli.archives.names import check_own, docker_tag, local_name, names_for
from imgfs.cli.failure import Failure
from imgfs.errors import Invalid, Malformed
from imgfs.oci.descriptor import OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest


def listed(mark: str, *names: str) -> Listed:
    return Listed(Descriptor(Digest.of(mark.encode()), 1, OCI_MANIFEST), names)


def chosen(images: list[Listed], name: str | None = None) -> dict[str, Listed]:
    return names_for(images, name, quiet=True)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("latest", "latest"),
        ("mytool", "mytool"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("user/app:1", "docker.io/user/app:1"),
        ("r.io/a/b:1", "r.io/a/b:1"),
        ("localhost/x:latest", "localhost/x:latest"),
        (f"r.io/a@{Digest.of(b'x')}", f"r.io/a@{Digest.of(b'x')}"),
        ("1.0", None),
        ("v1.2.3", None),
        ("", None),
        ("..", None),
        ("a\nb", None),
        ("../../etc/passwd", None),
        ("-x", None),
        (str(Digest.of(b"x")), None),
        ("UPPER/case:1", None),
    ],
)
def test_names_in_archives(raw: str, name: str | None) -> None:
    assert local_name(raw) == name


def test_every_usable_name_is_taken() -> None:
    one, two, nameless = listed("1", "a", "r.io/b:1", "1.0"), listed("2", "c"), listed("3")
    assert chosen([one, two, nameless]) == {"a": one, "r.io/b:1": one, "c": two}


def test_own_name_is_the_whole_name_of_the_only_image() -> None:
    one = listed("1", "a", "r.io/b:1")
    assert chosen([one], "mine") == {"mine": one}
    assert chosen([one, listed("1", "c")], "r.io/x:1") == {"r.io/x:1": one}
    assert chosen([listed("1")], "alpine:3") == {"docker.io/library/alpine:3": listed("1")}


def test_own_name_is_the_repository_of_several() -> None:
    one, two = listed("1", "1.0", "r.io/b:edge"), listed("2", "2.0")
    assert chosen([one, two], "r.io/x") == {"r.io/x:1.0": one, "r.io/x:edge": one, "r.io/x:2.0": two}
    for name in ("r.io/x:1", f"r.io/x@{Digest.of(b'x')}"):
        with pytest.raises(Failure, match="several images") as caught:
            chosen([one, two], name)
        assert caught.value.exit_code == 2


def test_archive_without_a_name_needs_one() -> None:
    with pytest.raises(Failure, match=r"found: 1\.0.*SOURCE NAME") as caught:
        chosen([listed("1", "1.0")])
    assert caught.value.exit_code == 2


def test_name_of_two_images_is_refused() -> None:
    with pytest.raises(Malformed, match="two images are named a"):
        chosen([listed("1", "a"), listed("2", "a")])


@pytest.mark.parametrize("name", ["sha256:abc", "r.io/UPPER:1", "a b/c", "", "-x"])
def test_own_name_that_is_none_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises((Invalid, Failure)):
        check_own(name)


@pytest.mark.parametrize("name", ["mine", "alpine:3", "r.io/x", "r.io/x:1"])
def test_own_name_may_be_a_word_a_reference_or_a_repository(name: str) -> None:
    check_own(name)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("docker.io/library/busybox:1", "docker.io/library/busybox:1"),
        ("mytool", "localhost/mytool:latest"),
        (f"r.io/a@{Digest.of(b'x')}", None),
        ("My Tool", None),
    ],
)
def test_names_for_docker(name: str, tag: str | None) -> None:
    assert docker_tag(name) == tag
