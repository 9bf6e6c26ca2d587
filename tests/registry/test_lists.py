"""Referrers, tags and repositories: all pages of the registry itself and of no other host, within limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trio.testing import MockClock

from imgfs.errors import AccessDenied, ImgfsError, Invalid, Malformed, NotFound, RegistryFailed, TooLarge
from imgfs.oci.descriptor import OCI_INDEX
from imgfs.oci.digest import Digest
from imgfs.oci.reference import expand_repository
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.limits import Limits
from imgfs.registry.lists import REFERRERS_MAX, fallback_tag, following_url, next_link
from imgfs.testing.build import Image, image, layer, referrer, referrers_index
from imgfs.testing.entries import File
from imgfs.testing.faults import Action, close, endless, html, huge, status
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import Reply
from tests.registry.scene import REPOSITORY, Scene
from tests.support.servers import Upload, docker_registry

BOX = image([layer([File("f", b"x")])])
SBOM, SIGNATURE = "application/spdx+json", "application/vnd.test.signature"
SBOMS = [referrer(BOX, SBOM, b"sbom %d" % number, annotations={"n": str(number)}) for number in range(5)]
SIGNED = referrer(BOX, SIGNATURE, b"signature")
OTHER = referrer(SIGNED, SIGNATURE, b"of another image")


@pytest.fixture
def scene(mock_clock: MockClock, registry: FakeRegistry) -> Scene:
    made = Scene(mock_clock, registry)
    for one in (BOX, *SBOMS, SIGNED, OTHER):
        one.add_to(registry, REPOSITORY)
    return made


async def referrers(scene: Scene, artifact_type: str = "", of: Image = BOX) -> list[str]:
    found = await scene.registry.referrers(scene.host, REPOSITORY, of.digest, artifact_type)
    return sorted(one.digest for one in found)


def digests(*images: Image) -> list[str]:
    return sorted(one.digest for one in images)


@pytest.mark.parametrize(("page", "requests"), [(1000, 1), (6, 1), (4, 2), (1, 6)])
async def test_referrers_are_read_to_the_last_page(scene: Scene, page: int, requests: int) -> None:
    scene.fake.page = page
    found = await scene.registry.referrers(scene.host, REPOSITORY, BOX.digest)
    assert sorted(one.digest for one in found) == digests(*SBOMS, SIGNED)
    assert {one.artifact_type for one in found} == {SBOM, SIGNATURE}
    assert {one.annotations.get("n") for one in found} == {*"01234", None}
    assert (scene.fake.requests("referrers"), scene.fake.requests()) == (requests, requests)
    assert scene.registry.statistics().hosts[scene.host].requests["referrers"] == requests


async def test_an_artifact_type_is_asked_for_and_picked_here_where_the_registry_does_not(scene: Scene) -> None:
    scene.fake.page = 2
    assert await referrers(scene, SBOM) == digests(*SBOMS)
    assert scene.fake.requests() == 3
    everything = json.dumps(
        {"manifests": [one.descriptor | {"artifactType": SIGNATURE} for one in (SIGNED, *SBOMS[:1])]}
    )
    scene.fake.fault(status(200, everything.encode(), Content_Type=OCI_INDEX))
    assert await referrers(scene, SBOM) == []


async def test_a_digest_without_referrers_has_an_empty_list(scene: Scene) -> None:
    assert await referrers(scene, of=SBOMS[0]) == []
    assert await referrers(scene, of=SIGNED) == digests(OTHER)


@pytest.mark.parametrize("code", [404, 405, 501])
async def test_without_the_api_the_fallback_tag_is_read(scene: Scene, code: int) -> None:
    scene.fake.fault(status(code), "referrers", times=None)
    assert await referrers(scene) == []
    tag = f"sha256-{BOX.digest.hex}"
    scene.fake.add_manifest(REPOSITORY, tag, referrers_index([(SBOM, SBOMS[0]), (SIGNATURE, SIGNED)]), OCI_INDEX)
    assert await referrers(scene) == digests(SBOMS[0], SIGNED)
    assert await referrers(scene, SBOM) == digests(SBOMS[0])
    assert scene.fake.requests("manifest") == 3


async def test_a_manifest_under_the_tag_is_no_list(scene: Scene) -> None:
    scene.fake.has_referrers = False
    scene.fake.add_manifest(REPOSITORY, fallback_tag(BOX.digest), BOX.document)
    with pytest.raises(Malformed, match="expected an index"):
        await referrers(scene)


def test_the_tag_of_a_long_digest_is_cut_as_the_specification_says() -> None:
    digest = Digest.of(b"", "sha512")
    assert fallback_tag(digest) == f"sha512-{digest.hex[:64]}"


@pytest.mark.parametrize("page", [1000, 2])
async def test_tags_and_repositories_in_the_registrys_order(scene: Scene, page: int) -> None:
    scene.fake.page = page
    for tag in ("a", "B", "0", "v1.2_3-x"):
        scene.fake.add_manifest(REPOSITORY, tag, BOX.document)
    for name in ("x/y/z", "another"):
        scene.fake.add_manifest(name, "1", BOX.document)
    assert await scene.registry.tags(scene.host, REPOSITORY) == ["0", "1", "B", "a", "v1.2_3-x"]
    assert await scene.registry.repositories(scene.host) == ["another", REPOSITORY, "x/y/z"]


async def test_a_repository_that_is_not_there_has_no_tags(scene: Scene) -> None:
    with pytest.raises(NotFound, match="NAME_UNKNOWN"):
        await scene.registry.tags(scene.host, "nobody")


async def test_a_token_is_asked_for_the_repository_and_for_the_catalogue(mock_clock: MockClock) -> None:
    with FakeRegistry(token=True) as fake:
        scene = Scene(mock_clock, fake)
        assert await scene.registry.tags(scene.host, REPOSITORY) == ["1"]
        assert await scene.registry.repositories(scene.host) == [REPOSITORY]
        assert set(fake.tokens.values()) == {f"repository:{REPOSITORY}:pull", "registry:catalog:*"}


async def test_invalid_and_duplicate_names_are_left_out(scene: Scene) -> None:
    body = json.dumps(
        {"tags": ["ok", "ok", "", "-x", "a/b", "new\nline", "x" * 129], "repositories": ["a", "../b", "A"]}
    )
    scene.fake.fault(status(200, body.encode(), Content_Type="application/json"), times=None)
    assert await scene.registry.tags(scene.host, REPOSITORY) == ["ok"]
    assert await scene.registry.repositories(scene.host) == ["a"]


def linked(target: str) -> Action:
    """Add a link to a next page."""
    return lambda reply: reply.headed(Link=f'<{target}>; rel="next"')


class Onwards:
    """Adds a link to a next page to every page, so that the list never ends."""

    def __init__(self, path: str) -> None:
        self.path, self.count = path, 0

    def __call__(self, reply: Reply) -> Reply:
        self.count += 1
        return reply.headed(Link=f'<{self.path}?last={self.count}>; rel="next"')


def many(reply: Reply) -> Reply:
    entries = [{"digest": Digest.of(b"%d" % n), "size": 1, "mediaType": OCI_INDEX} for n in range(REFERRERS_MAX + 1)]
    return Reply(body=json.dumps({"manifests": entries}).encode()).headed(Content_Type=OCI_INDEX)


@pytest.mark.parametrize(
    ("action", "error", "said"),
    [
        (linked("http://127.0.0.1:1/v2/x"), RegistryFailed, "leads to 127.0.0.1:1, which is not followed"),
        (linked("//registry.test/v2/x"), RegistryFailed, "leads to registry.test"),
        (linked("file:///etc/passwd"), RegistryFailed, "expected an http or https address"),
        (linked("http://[::1"), RegistryFailed, "expected an http or https address|malformed"),
        (linked("http://user@127.0.0.1/"), RegistryFailed, "expected an http or https address"),
        (linked("?n=1000"), RegistryFailed, "lead in a circle"),
        (html(), Malformed, "is it a login page"),
        (status(200, b"{", Content_Type="application/json"), Malformed, "of 127"),
        (status(200, b"[]", Content_Type="application/json"), Malformed, "of 127"),
        (status(200, b"[" * 9999, Content_Type="application/json"), Malformed, "nested deeper"),
        (huge((4 << 20) + 1), TooLarge, "the limit is 4194304"),
        (endless(), TooLarge, "the limit of 4194304"),
        (status(403), AccessDenied, "403"),
        (status(500), RegistryFailed, "500"),
    ],
)
@pytest.mark.parametrize("what", ["tags", "catalog", "referrers"])
async def test_hostile_pages_are_refused(
    scene: Scene, mock_clock: MockClock, what: str, action: Action, error: type[ImgfsError], said: str
) -> None:
    if what == "referrers":
        scene.fake.page = 1
    scene.fake.fault(action, what, times=None)
    with pytest.raises(error, match=said) as caught:
        await ask(scene, what)
    assert scene.host in caught.value.message


async def ask(scene: Scene, what: str) -> object:
    if what == "tags":
        return await scene.registry.tags(scene.host, REPOSITORY)
    if what == "catalog":
        return await scene.registry.repositories(scene.host)
    return await scene.registry.referrers(scene.host, REPOSITORY, BOX.digest)


@pytest.mark.parametrize("what", ["tags", "catalog", "referrers"])
async def test_endless_pages_end(scene: Scene, what: str) -> None:
    same = {"tags": f"/v2/{REPOSITORY}/tags/list", "catalog": "/v2/_catalog"}
    scene.fake.fault(Onwards(same.get(what, f"/v2/{REPOSITORY}/referrers/{BOX.digest}")), "", times=None)
    with pytest.raises(TooLarge, match="more than 100 pages"):
        await ask(scene, what)
    assert scene.fake.requests() == 100


@pytest.mark.parametrize("what", ["tags", "catalog", "referrers"])
async def test_a_list_with_a_missing_page_is_an_error(scene: Scene, what: str) -> None:
    scene.fake.fault(linked("/v2/more"), what)
    with pytest.raises(RegistryFailed, match="page 2"):
        await ask(scene, what)


async def test_all_pages_together_are_bounded(mock_clock: MockClock, registry: FakeRegistry) -> None:
    scene = Scene(mock_clock, registry, Limits(listing=100))
    registry.page = 1
    for number in range(9):
        registry.add_manifest(REPOSITORY, f"tag{number}", BOX.document)
    with pytest.raises(TooLarge):
        await scene.registry.tags(scene.host, REPOSITORY)
    assert registry.requests() < 9


async def test_more_referrers_than_the_limit_are_refused(scene: Scene) -> None:
    scene.fake.fault(many)
    with pytest.raises(TooLarge, match=f"more than {REFERRERS_MAX}"):
        await referrers(scene)


async def test_a_page_that_breaks_is_asked_for_again_and_each_page_begins_the_count(
    scene: Scene, mock_clock: MockClock
) -> None:
    scene.fake.page = 1
    for last in range(3):
        scene.fake.add_manifest(REPOSITORY, f"t{last}", BOX.document)
        scene.fake.fault(close(), f"last=t{last}", times=2)
    assert await scene.registry.tags(scene.host, REPOSITORY) == ["1", "t0", "t1", "t2"]
    assert len(scene.slept) == 4


async def test_a_mirror_without_a_list_is_left_and_a_catalogue_is_the_registrys_own(
    mock_clock: MockClock, registry: FakeRegistry, tmp_path: Path
) -> None:
    with FakeRegistry() as mirror:
        directory = tmp_path / registry.host
        directory.mkdir()
        (directory / "hosts.toml").write_text(f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
        scene = Scene(mock_clock, registry, hosts_path=[tmp_path])
        SIGNED.add_to(registry, REPOSITORY)
        mirror.has_referrers = False
        assert await referrers(scene) == digests(SIGNED)
        mirror.page = 1
        for tag in "ab":
            mirror.add_manifest(REPOSITORY, tag, BOX.document)
        assert await scene.registry.tags(scene.host, REPOSITORY) == ["a", "b"]
        assert all(f"ns={registry.host.replace(':', '%3A')}" in one.path for one in mirror.log)
        mirror.reset()
        assert await scene.registry.repositories(scene.host) == [REPOSITORY]
        assert mirror.requests() == 0


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ('</v2/x?last=1>; rel="next"', "/v2/x?last=1"),
        ("<a>;rel=next", "a"),
        ('<a>; title="x; y"; REL="prev NEXT"', "a"),
        ('<first>; rel="first", <b,c;d>; rel="next"', "b,c;d"),
        ('<a>; rel="nextish"', ""),
        ("<a>; x=next", ""),
        ("a; rel=next", ""),
        ("<a", ""),
        ("", ""),
        ("<" * 60_000, ""),
    ],
)
def test_links_are_read(header: str, target: str) -> None:
    assert next_link(header) == target


@pytest.mark.parametrize(
    ("link", "url"),
    [
        ("/v2/a/tags/list?last=x", "https://registry.test/v2/a/tags/list?last=x"),
        ("?last=x", "https://registry.test/v2/r/tags/list?last=x"),
        ("http://registry.test/v2/a?n=1", "https://registry.test/v2/a?n=1"),
        ("https://REGISTRY.test/v2/a", "https://REGISTRY.test/v2/a"),
    ],
)
def test_a_next_page_is_asked_for_as_the_first_one_was(link: str, url: str) -> None:
    there = Endpoint("registry.test", "https", "registry.test")
    assert following_url(there, "https://registry.test/v2/r/tags/list?n=9", link, "tags") == url


def test_the_next_page_of_a_mirror_keeps_the_ns_parameter() -> None:
    there = Endpoint("m.test", "https", "m.test", ns="registry.test", mirror=True)
    for link in ("/v2/a?last=x", "/v2/a?last=x&ns=registry.test"):
        assert following_url(there, "https://m.test/v2/", link, "tags") == "https://m.test/v2/a?last=x&ns=registry.test"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("alpine", ("docker.io", "library/alpine")),
        ("quay.io/a/b", ("quay.io", "a/b")),
        ("quay.io", ("quay.io", "")),
        ("localhost:5000", ("localhost:5000", "")),
        ("localhost:5000/x", ("localhost:5000", "x")),
    ],
)
def test_repositories_and_hosts_as_people_type_them(text: str, place: tuple[str, str]) -> None:
    assert expand_repository(text) == place


@pytest.mark.parametrize("text", ["a/alpine:3", "a/alpine:latest", f"alpine@{BOX.digest}", "", "A", "quay.io/"])
def test_a_reference_with_a_tag_is_no_repository(text: str) -> None:
    with pytest.raises(Invalid):
        expand_repository(text)


async def test_pages_of_docker_registry_are_read_to_the_last(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgfs.registry.lists.PAGE", 2)
    names = [f"team/app{number}" for number in range(5)]
    with docker_registry(tmp_path / "registry") as real:
        for name in names:
            BOX.add_to(Upload(real.host, name), name, "1")
        assert await scene.registry.repositories(real.host) == names
        assert scene.registry.statistics().hosts[real.host].requests["catalog"] == 3
        assert await scene.registry.tags(real.host, names[0]) == ["1"]
        assert await scene.registry.referrers(real.host, names[0], BOX.digest) == []
