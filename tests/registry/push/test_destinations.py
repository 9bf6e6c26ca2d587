"""Repositories that receive pushes: the choice of the host, existing content, manifests, and indexes of referrers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from imgfs.errors import (
    AccessDenied,
    ImgfsError,
    Malformed,
    RateLimited,
    RegistryFailed,
    Unreachable,
    VerificationFailed,
)
from imgfs.oci.descriptor import OCI_INDEX, OCI_MANIFEST, Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import ImageIndex, parse_document
from imgfs.registry.push.destination import entry_of, with_entry
from imgfs.testing.faults import close, status
from imgfs.testing.reply import Reply
from imgfs.testing.uploads import PushRegistry
from tests.registry.push.pushing import REPOSITORY, SMALL, Bytes, Pushing

CONFIG = b"{}"


@pytest.fixture
def fake() -> Iterator[PushRegistry]:
    with PushRegistry() as fake:
        fake.add(REPOSITORY, CONFIG)
        yield fake


def manifest(mark: str = "", **more: object) -> bytes:
    config = {"mediaType": "application/vnd.example.config", "digest": Digest.of(CONFIG), "size": len(CONFIG)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "mark": mark, **more}).encode()


async def test_what_is_there_is_known_by_one_head(mock_clock: MockClock, pushing: Pushing) -> None:
    digest = pushing.fake.add(REPOSITORY, SMALL)
    destination = await pushing.destination()
    assert await destination.has_blob(digest)
    assert not await destination.has_blob(Digest.of(b"else"))
    assert pushing.fake.asked() == ["HEAD blobs", "HEAD blobs"]


async def test_a_manifest_is_put_with_its_type_and_exact_bytes(mock_clock: MockClock, pushing: Pushing) -> None:
    data = manifest()
    assert await pushing.put(data) is None
    assert await pushing.put(data, "1") is None
    assert pushing.fake.manifest(REPOSITORY, "1") == (data, OCI_MANIFEST)
    assert pushing.fake.asked() == ["PUT manifests"] * 2


async def test_a_tag_counts_only_for_its_digest(mock_clock: MockClock, pushing: Pushing) -> None:
    data, other = manifest(), manifest("other")
    await pushing.put(data, "1")
    destination = await pushing.destination()
    assert await destination.has_manifest("1", Digest.of(data))
    assert not await destination.has_manifest("1", Digest.of(other))
    assert not await destination.has_manifest("2", Digest.of(data))
    assert await destination.has_manifest(Digest.of(data), Digest.of(data))


async def test_a_manifest_by_digest_is_put_again_where_nobody_knows(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(close(), "PUT", times=2)
    await pushing.put(manifest())
    assert pushing.fake.asked() == ["PUT manifests"] * 3


async def test_a_tag_is_looked_at_before_it_is_set_again(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(503), "PUT", times=1)
    await pushing.put(manifest(), "1")
    assert pushing.fake.asked() == ["PUT manifests", "HEAD manifests", "PUT manifests"]


async def test_the_subject_that_was_seen_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    subject = Digest.of(b"subject")
    data = manifest(subject={"mediaType": OCI_MANIFEST, "digest": subject, "size": 7})
    assert await pushing.put(data) == subject
    pushing.fake.tells_subject = False
    assert await pushing.put(data) is None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, RegistryFailed),
        (401, AccessDenied),
        (403, AccessDenied),
        (405, RegistryFailed),
        (413, RegistryFailed),
        (429, RateLimited),
        (500, RegistryFailed),
        (501, RegistryFailed),
    ],
)
async def test_every_refusal_has_its_error(
    mock_clock: MockClock, pushing: Pushing, code: int, error: type[ImgfsError]
) -> None:
    pushing.fake.fault(status(code, b'{"errors":[{"code":"SOME_REASON"}]}'), "PUT", times=None)
    with pytest.raises(error, match=f"{pushing.fake.host}.*{code}") as caught:
        await pushing.put(manifest())
    assert "SOME_REASON" in caught.value.message or code in (401, 403)


async def test_missing_blobs_are_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.repositories.clear()
    with pytest.raises(RegistryFailed, match="400 MANIFEST_BLOB_UNKNOWN"):
        await pushing.put(manifest())


async def test_a_registry_that_stores_other_bytes_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(status(201, Docker_Content_Digest=Digest.of(b"else")), "PUT")
    with pytest.raises(VerificationFailed, match="stored it as"):
        await pushing.put(manifest())


async def test_a_registry_that_is_gone_is_told(mock_clock: MockClock, pushing: Pushing) -> None:
    pushing.fake.fault(close(), times=None)
    with pytest.raises(Unreachable):
        await (await pushing.destination()).has_blob(Digest.of(SMALL))


async def pushed_to(mock_clock: MockClock, path: Path, fake: PushRegistry, text: str) -> str:
    """Return the host that receives a manifest for `registry.example` with this hosts.toml."""
    directory = path / "certs.d/registry.example"
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(text)
    pushing = Pushing(mock_clock, fake, [path / "certs.d"])
    async with pushing.registry:
        return (await pushing.registry.destination("registry.example", REPOSITORY)).authority


@pytest.mark.parametrize("capabilities", ["", 'capabilities = ["pull", "resolve", "push"]\n'])
async def test_the_first_mirror_that_may_be_pushed_to_is(
    mock_clock: MockClock, tmp_path: Path, fake: PushRegistry, capabilities: str
) -> None:
    """As in containerd, a mirror without `capabilities` has all of them."""
    first = '[host."https://first.example"]\ncapabilities = ["pull"]\n'
    assert await pushed_to(mock_clock, tmp_path, fake, f'{first}[host."{fake.url}"]\n{capabilities}') == fake.host


async def test_a_mirror_that_may_only_pull_is_not_pushed_to(
    mock_clock: MockClock, tmp_path: Path, fake: PushRegistry
) -> None:
    text = f'[host."{fake.url}"]\ncapabilities = ["pull", "resolve"]\n'
    assert await pushed_to(mock_clock, tmp_path, fake, text) == "registry.example"


async def test_a_mirror_that_takes_no_pushes_is_told_with_the_cure(
    mock_clock: MockClock, tmp_path: Path, fake: PushRegistry
) -> None:
    directory = tmp_path / "registry.example"
    directory.mkdir()
    (directory / "hosts.toml").write_text(f'[host."{fake.url}"]\n')
    fake.takes_pushes = False
    pushing = Pushing(mock_clock, fake, [tmp_path])
    async with pushing.registry:
        destination, blob = await pushing.registry.destination("registry.example", REPOSITORY), Bytes(SMALL)
        assert destination.mirror == fake.host
        with pytest.raises(RegistryFailed, match=r"405.*hosts\.toml.*capabilities.*without push"):
            await destination.upload(blob.descriptor, blob.read, pushing.offsets.append)


async def test_the_registry_s_own_table_takes_its_pushes(
    mock_clock: MockClock, tmp_path: Path, fake: PushRegistry
) -> None:
    text = '[host."https://registry.example"]\nskip_verify = true\n'
    assert await pushed_to(mock_clock, tmp_path, fake, text) == "registry.example"


async def test_where_nobody_may_be_pushed_to_that_is_told(
    mock_clock: MockClock, tmp_path: Path, fake: PushRegistry
) -> None:
    with pytest.raises(RegistryFailed, match="capability push"):
        await pushed_to(mock_clock, tmp_path, fake, 'capabilities = ["pull", "resolve"]\n')


async def test_a_list_grows_by_one_entry_at_a_time(mock_clock: MockClock, pushing: Pushing) -> None:
    subject = Digest.of(b"subject")
    destination = await pushing.destination()
    for mark in ("a", "b", "a"):
        data = manifest(mark)
        await pushing.put(data)
        await destination.list_referrer(subject, Descriptor(Digest.of(data), len(data), OCI_MANIFEST), data)
    found = pushing.fake.manifest(REPOSITORY, f"sha256-{subject.hex}")
    assert found is not None
    listed = parse_document(found[0])
    assert [one.digest for one in listed.children] == [Digest.of(manifest("a")), Digest.of(manifest("b"))]
    assert {one.artifact_type for one in listed.children} == {"application/vnd.example.config"}


async def test_a_list_that_cannot_be_read_is_not_replaced(mock_clock: MockClock, pushing: Pushing) -> None:
    subject, data = Digest.of(b"subject"), manifest()
    pushing.fake.fault(lambda reply: Reply(500), "GET .*/manifests/", times=None)
    with pytest.raises(RegistryFailed):
        await (await pushing.destination()).list_referrer(
            subject, Descriptor(Digest.of(data), len(data), OCI_MANIFEST), data
        )
    assert "PUT manifests" not in pushing.fake.asked()


@pytest.mark.parametrize("index", [b"[]", b"1", b"{}", b'{"manifests":1}', b'{"manifests":[1]}', b"{", b""])
def test_what_is_no_index_is_refused(index: bytes) -> None:
    with pytest.raises(Malformed):
        with_entry(index, {"digest": "x"}, "r")


_WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(_WORDS, st.dictionaries(_WORDS, _WORDS, max_size=3)), max_size=8), _WORDS)
def test_whatever_an_index_holds_stays_when_an_entry_is_added(
    entries: list[tuple[str, dict[str, str]]], extra: str
) -> None:
    index: bytes | None = None
    expected: dict[str, object] = {}
    for mark, notes in entries:
        data = json.dumps({"artifactType": f"a/{mark}", "annotations": notes}).encode()
        descriptor = Descriptor(Digest.of(data), len(data), OCI_MANIFEST)
        grown = with_entry(index, entry_of(descriptor, data), "r")
        assert (grown is None) == (descriptor.digest in expected)
        expected.setdefault(descriptor.digest, (f"a/{mark}", notes))
        if grown is not None:
            index = json.dumps(json.loads(grown) | {"x-extra": extra}).encode()
    if index is not None:
        document = parse_document(index)
        assert isinstance(document, ImageIndex)
        assert document.media_type == OCI_INDEX
        assert {one.digest: (one.artifact_type, one.annotations) for one in document.manifests} == expected
        assert json.loads(index)["x-extra"] == extra
