"""TLS faults at a registry, its storage and its token endpoint.

The tests check that imgfs reports the fault, sends no request to the untrusted server, and recovers after the
fault ends.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
import trustme

from imgfs.testing.faults import redirect
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import CONFIG, error_of, refused, small, until
from tests.mount.test_faults import ADVICE, LIMITS
from tests.support.mounted import Mounted

AUTHORITY = trustme.CA()
"""The certificate authority that the mount trusts for every registry in these tests."""
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Wrong:
    """A certificate that imgfs must reject, and text that the error message must contain."""

    make: Callable[[], trustme.LeafCert]
    word: str


CERTIFICATES = {
    "expired": Wrong(lambda: AUTHORITY.issue_cert("127.0.0.1", not_after=YESTERDAY), "expired"),
    "of-another-name": Wrong(lambda: AUTHORITY.issue_cert("registry.example"), "not valid for"),
    "of-another-authority": Wrong(lambda: trustme.CA().issue_cert("127.0.0.1"), "unable to get local issuer"),
}


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certs")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory, certs: Path) -> Iterator[Mounted]:
    config = f"{CONFIG}hosts_path = [{json.dumps(str(certs))}]\n{LIMITS}"
    with Mounted(tmp_path_factory.mktemp("tls"), config) as mount:
        mount.start()
        yield mount


def believe(certs: Path, host: str) -> None:
    """Write the CA certificate to Docker's ca.crt file for the host. The file also makes imgfs use TLS for the host."""
    (certs / host).mkdir()
    AUTHORITY.cert_pem.write_to_path(certs / host / "ca.crt")


def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.parametrize("case", CERTIFICATES)
def test_registry_with_a_bad_certificate_gets_no_request(mounted: Mounted, certs: Path, case: str) -> None:
    context, made = server_side(CERTIFICATES[case].make()), small(case)
    with FakeRegistry(tls=context) as registry:
        believe(certs, registry.host)
        made.add_to(registry, case, "1")
        name = mounted.image(f"{registry.host}/{case}:1")
        with refused(errno.EREMOTEIO):
            os.stat(name)
        assert_told(error_of(name.parent), registry.host, CERTIFICATES[case].word)
        assert registry.requests() == 0
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        assert until((name / "rootfs/mark").read_bytes) == f"{case}/0\n".encode()


@pytest.mark.parametrize("case", CERTIFICATES)
def test_storage_with_a_bad_certificate_gets_no_request(mounted: Mounted, certs: Path, case: str) -> None:
    context, made = server_side(CERTIFICATES[case].make()), small(f"storage {case}")
    layer = made.layers[0].digest
    with FakeRegistry(tls=server_side(AUTHORITY.issue_cert("127.0.0.1"))) as registry, FakeRegistry(tls=context) as far:
        believe(certs, registry.host)
        made.add_to(registry, f"storage-{case}", "1")
        made.add_to(far, "bucket", "1")
        registry.fault(redirect(f"{far.url}/v2/bucket/blobs/{layer}?canary"), layer, times=None)
        name = mounted.image(f"{registry.host}/storage-{case}:1")
        with refused(errno.EREMOTEIO):
            os.listdir(f"{name}/rootfs/")
        assert_told(error_of(mounted.content / layer), far.host, CERTIFICATES[case].word)
        assert far.requests() == 0
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        assert until((name / "rootfs/mark").read_bytes) == f"storage {case}/0\n".encode()


def test_token_endpoint_with_a_bad_certificate_gets_no_request(mounted: Mounted, certs: Path) -> None:
    context, made = server_side(CERTIFICATES["of-another-name"].make()), small("token endpoint")
    good = server_side(AUTHORITY.issue_cert("127.0.0.1"))
    with FakeRegistry(tls=good, token=True) as registry, FakeRegistry(tls=context) as far:
        believe(certs, registry.host)
        registry.realm, far.tokens = f"{far.url}/token?canary", registry.tokens
        made.add_to(registry, "token", "1")
        name = mounted.image(f"{registry.host}/token:1")
        with refused(errno.EREMOTEIO):
            os.stat(name)
        assert_told(error_of(name.parent), far.host, CERTIFICATES["of-another-name"].word)
        assert far.requests() == 0
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        assert until((name / "rootfs/mark").read_bytes) == b"token endpoint/0\n"


def assert_told(told: str, host: str, word: str) -> None:
    assert f"TLS with {host} failed" in told
    assert word in told
    assert ADVICE.search(told.rpartition(";")[2])
    assert "canary" not in told


def test_redirect_from_https_to_http_is_not_followed(mounted: Mounted, certs: Path) -> None:
    made = small("downgrade")
    layer = made.layers[0].digest
    with FakeRegistry(tls=server_side(AUTHORITY.issue_cert("127.0.0.1"))) as registry, FakeRegistry() as plain:
        believe(certs, registry.host)
        made.add_to(registry, "downgrade", "1")
        made.add_to(plain, "bucket", "1")
        fault = registry.fault(redirect(f"{plain.url}/v2/bucket/blobs/{layer}?canary"), layer, times=None)
        name = mounted.image(f"{registry.host}/downgrade:1")
        with refused(errno.EREMOTEIO):
            os.listdir(f"{name}/rootfs/")
        told = error_of(mounted.content / layer)
        assert f"leads from https to http at {plain.host}, which is never followed" in told
        assert "canary" not in told
        assert plain.requests() == 0
        fault.times = 0
        assert until((name / "rootfs/mark").read_bytes) == b"downgrade/0\n"


def test_registry_without_tls_is_reported(mounted: Mounted, certs: Path) -> None:
    with FakeRegistry() as registry:
        believe(certs, registry.host)
        with refused(errno.EREMOTEIO):
            os.stat(mounted.image(f"{registry.host}/plain:1"))
        assert_told(error_of(mounted.image(registry.host)), registry.host, "WRONG_VERSION_NUMBER")


@pytest.mark.parametrize(("ends", "code"), [(True, errno.EHOSTUNREACH), (False, errno.ETIMEDOUT)])
def test_closed_or_stalled_handshake_is_reported_as_unreachable_or_timeout(
    mounted: Mounted, certs: Path, ends: bool, code: int
) -> None:
    with silent(ends) as host:
        believe(certs, host)
        with refused(code):
            os.stat(mounted.image(f"{host}/silent:1"))
        told = error_of(mounted.image(host))
        assert host in told
        assert ADVICE.search(told.rpartition(";")[2])


@contextmanager
def silent(ends: bool) -> Iterator[str]:
    """Run a server that accepts connections and never answers.

    If `ends` is true, the server closes each connection after the first byte. Otherwise it keeps the connections open.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = list[socket.socket]()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                if ends:
                    connection.recv(1)
                    connection.close()
                else:
                    kept.append(connection)

        thread = Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in kept:
            one.close()
