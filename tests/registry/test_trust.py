"""TLS: whether the system's certificates, those of the host or none verify a server, and client certificates."""

from __future__ import annotations

import logging
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from trio.testing import MockClock

from imgfs.errors import RegistryFailed, Unreachable
from imgfs.registry.http.trust import CertFile, Trust
from imgfs.testing import faults
from imgfs.testing.registry import FakeRegistry
from tests.registry.scene import BLOB, MANIFEST, Scene
from tests.support.programs import run

HOST = "registry.example"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def speaking(authority: trustme.CA, clients: trustme.CA | None = None) -> ssl.SSLContext:
    """Return the context of a TLS server. With `clients` it requires a client certificate of this authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def fake(authority: trustme.CA) -> Iterator[FakeRegistry]:
    with FakeRegistry(tls=speaking(authority)) as fake:
        yield fake


def scene(clock: MockClock, fake: FakeRegistry, directory: Path, text: str = "") -> Scene:
    """A scene with the hosts.toml `text` for the registry HOST, which is at `fake`."""
    (directory / HOST).mkdir(exist_ok=True)
    (directory / HOST / "hosts.toml").write_text(f'server = "{fake.url}"\n{text}')
    return Scene(clock, fake, host=HOST, hosts_path=[directory])


def keep(authority: trustme.CA, path: Path) -> Path:
    authority.cert_pem.write_to_path(path)
    return path


async def test_a_ca_of_the_host_is_believed_there(
    mock_clock: MockClock, fake: FakeRegistry, authority: trustme.CA, tmp_path: Path
) -> None:
    (tmp_path / HOST).mkdir()
    keep(authority, tmp_path / HOST / "ca.pem")
    made = scene(mock_clock, fake, tmp_path, 'ca = ["ca.pem"]')
    async with made.registry:
        assert (await made.ask("manifest"), await made.read()) == (MANIFEST, BLOB)


async def test_without_it_the_host_is_refused_and_asked_nothing(
    mock_clock: MockClock, fake: FakeRegistry, tmp_path: Path
) -> None:
    made = scene(mock_clock, fake, tmp_path)
    async with made.registry:
        with pytest.raises(RegistryFailed, match="TLS with"):
            await made.ask("manifest")
    assert fake.requests() == 0


async def test_skip_verify_believes_everybody_there(mock_clock: MockClock, fake: FakeRegistry, tmp_path: Path) -> None:
    made = scene(mock_clock, fake, tmp_path, "skip_verify = true")
    async with made.registry:
        assert await made.ask("manifest") == MANIFEST


async def test_skip_verify_ends_at_the_hosts_border(
    mock_clock: MockClock, fake: FakeRegistry, authority: trustme.CA, tmp_path: Path
) -> None:
    with FakeRegistry(tls=speaking(authority)) as storage:
        digest = storage.add_blob(BLOB)
        fake.fault(faults.redirect(f"{storage.url}/v2/x/blobs/{digest}"), "/blobs/")
        made = scene(mock_clock, fake, tmp_path, "skip_verify = true")
        async with made.registry:
            with pytest.raises(RegistryFailed, match="TLS with"):
                await made.read()
        assert storage.requests() == 0


async def test_where_it_sends_us_its_authorities_are_believed_and_our_certificate_stays_home(
    mock_clock: MockClock, authority: trustme.CA, tmp_path: Path
) -> None:
    clients = trustme.CA()
    (tmp_path / HOST).mkdir()
    keep(authority, tmp_path / HOST / "ca.pem")
    clients.issue_cert("me@imgfs").private_key_and_cert_chain_pem.write_to_path(tmp_path / HOST / "me.pem")
    with (
        FakeRegistry(tls=speaking(authority, clients)) as home,
        FakeRegistry(tls=speaking(authority)) as storage,
        FakeRegistry(tls=speaking(authority, clients)) as greedy,
    ):
        for one in (storage, greedy):
            one.add_blob(BLOB)
        made = scene(mock_clock, home, tmp_path, 'ca = "ca.pem"\nclient = "me.pem"')
        async with made.registry:
            home.fault(faults.redirect(f"{storage.url}/v2/x/blobs/{made.blob.digest}"), "/blobs/")
            assert await made.read() == BLOB
            home.fault(faults.redirect(f"{greedy.url}/v2/x/blobs/{made.blob.digest}"), "/blobs/", times=None)
            with pytest.raises((RegistryFailed, Unreachable)):
                await made.read()
        assert (storage.requests(), greedy.requests()) == (1, 0)


@pytest.mark.parametrize("pair", [False, True])
async def test_a_client_certificate_lets_us_in(
    mock_clock: MockClock, authority: trustme.CA, tmp_path: Path, pair: bool
) -> None:
    clients = trustme.CA()
    (tmp_path / HOST).mkdir()
    keep(authority, tmp_path / HOST / "ca.pem")
    mine = clients.issue_cert("me@imgfs")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / HOST / "both.pem")
    mine.private_key_pem.write_to_path(tmp_path / HOST / "me.key")
    mine.cert_chain_pems[0].write_to_path(tmp_path / HOST / "me.cert")
    client = '[["me.cert", "me.key"]]' if pair else '"both.pem"'
    with FakeRegistry(tls=speaking(authority, clients)) as guarded:
        made = scene(mock_clock, guarded, tmp_path, f'ca = "ca.pem"\nclient = {client}')
        async with made.registry:
            assert await made.ask("manifest") == MANIFEST
        stranger = scene(mock_clock, guarded, tmp_path, 'ca = "ca.pem"')
        async with stranger.registry:
            with pytest.raises((RegistryFailed, Unreachable)):
                await stranger.ask("manifest")


async def test_a_certificate_that_was_replaced_is_read_again(
    mock_clock: MockClock, fake: FakeRegistry, authority: trustme.CA, tmp_path: Path
) -> None:
    (tmp_path / HOST).mkdir()
    path = keep(trustme.CA(), tmp_path / HOST / "ca.pem")
    made = scene(mock_clock, fake, tmp_path, 'ca = "ca.pem"')
    async with made.registry:
        with pytest.raises(RegistryFailed, match="TLS with"):
            await made.ask("manifest")
        keep(authority, path)
        assert await made.ask("manifest") == MANIFEST
        keep(trustme.CA(), path)
        with pytest.raises(RegistryFailed, match="TLS with"):
            await made.ask("manifest")


@pytest.mark.parametrize("name", ["127.0.0.1:{}", "127.0.0.1_{}_"])
async def test_dockers_files_are_read_where_there_is_no_hosts_toml_and_mean_tls(
    mock_clock: MockClock, fake: FakeRegistry, authority: trustme.CA, tmp_path: Path, name: str
) -> None:
    directory = tmp_path / name.format(fake.host.partition(":")[2])
    directory.mkdir()
    keep(authority, directory / "ca.crt")
    made = Scene(mock_clock, fake, hosts_path=[tmp_path])
    async with made.registry:
        assert await made.ask("manifest") == MANIFEST


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('ca = "gone.pem"', "gone.pem: No such file"),
        ('ca = "hosts.toml"', "hosts.toml: is of no use for TLS"),
        ('client = "gone.pem"', "gone.pem: No such file"),
        ('client = "hosts.toml"', "hosts.toml: is of no use for TLS"),
    ],
)
async def test_a_file_of_no_use_is_named(
    mock_clock: MockClock, fake: FakeRegistry, tmp_path: Path, text: str, said: str
) -> None:
    made = scene(mock_clock, fake, tmp_path, text)
    async with made.registry:
        with pytest.raises(RegistryFailed, match=said):
            await made.ask("manifest")
    assert fake.requests() == 0


def test_a_key_with_a_password_is_refused_and_asks_nobody(authority: trustme.CA, tmp_path: Path) -> None:
    mine = authority.issue_cert("me@imgfs")
    key = serialization.load_pem_private_key(mine.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"canary"),
    )
    (tmp_path / "me.key").write_bytes(locked)
    mine.cert_chain_pems[0].write_to_path(tmp_path / "me.cert")
    trust = Trust(client=((CertFile.of(tmp_path / "me.cert"), CertFile.of(tmp_path / "me.key")),))
    with pytest.raises(RegistryFailed, match="is of no use for TLS"):
        trust.context()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_the_environment_names_the_systems_certificates(
    mock_clock: MockClock,
    fake: FakeRegistry,
    authority: trustme.CA,
    tmp_path: Path,
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = keep(authority, tmp_path / "system.pem")
    if variable == "SSL_CERT_DIR":
        directory = tmp_path / "hashed"
        directory.mkdir()
        shutil.copy(path, directory / f"{_subject_hash(path)}.0")
        path = directory
    monkeypatch.setenv(variable, str(path))
    made = scene(mock_clock, fake, tmp_path)
    async with made.registry:
        assert await made.ask("manifest") == MANIFEST


def test_what_the_environment_names_in_vain_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, "imgfs.registry"):
        Trust().context()
    assert [getattr(record, "path", "") for record in caplog.records] == [str(tmp_path / "gone.pem")]


def _subject_hash(path: Path) -> str:
    return run("openssl", "x509", "-noout", "-subject_hash", "-in", path).decode().strip()
