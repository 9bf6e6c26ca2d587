"""Mirrors, TLS and proxies through a real mount, with real servers where possible."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from imgfs.testing.build import AMD64, Image, image, layer
from imgfs.testing.entries import File
from imgfs.testing.faults import Fault, cut_at, wrong_bytes
from imgfs.testing.registry import FakeRegistry
from tests.mount.scene import CONFIG, assert_verified, error_of, refused, run, small, until
from tests.mount.test_ingest_crashes import noise
from tests.support.mounted import Mounted
from tests.support.nginx import nginx, passing_to
from tests.support.programs import free_port
from tests.support.servers import DockerRegistry, Upload, docker_registry

HOST = "registry.example"
"""Registry host in the image names. hosts.toml maps it to the address of a test server."""
NAME = f"{HOST}/box:1"
SIZE = 300_000


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path / "upstream") as registry:
        yield registry


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """Create the directory from which the mount reads hosts.toml files."""
    directory = tmp_path / "certs.d"
    directory.mkdir()
    return directory


@pytest.fixture
def mounted(tmp_path: Path, certs: Path) -> Iterator[Mounted]:
    with Mounted(tmp_path, f"{CONFIG}hosts_path = [{json.dumps(str(certs))}]\n") as mount:
        mount.start()
        yield mount


def configure(certs: Path, text: str, name: str = HOST) -> None:
    (certs / name).mkdir(exist_ok=True)
    (certs / name / "hosts.toml").write_text(text)


def push(registry: DockerRegistry, made: Image) -> None:
    made.add_to(Upload(registry.host, "box"), "box", "1")


def noisy(mark: str) -> tuple[Image, bytes]:
    """Return an image with an incompressible layer, and the content of its file `noise`."""
    data = noise(mark, SIZE)
    return image([layer([File("noise", data)], "none")], platform=AMD64), data


def metric(mounted: Mounted, name: str, **labels: str) -> int:
    said = ",".join(f'{key}="{value}"' for key, value in labels.items())
    lines = (mounted.path / ".imgfs/metrics").read_text().splitlines()
    return next((int(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{{said}}} ")), 0)


def read(mounted: Mounted, name: str = NAME) -> bytes:
    return (mounted.rootfs(name) / "noise").read_bytes()


def test_registry_that_requires_a_client_certificate(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, tmp_path: Path
) -> None:
    servers, clients = trustme.CA(), trustme.CA()
    made, data = noisy("tls")
    push(upstream, made)
    settings = certificates(tmp_path, servers, clients)
    servers.cert_pem.write_to_path(tmp_path / "ca.pem")
    clients.issue_cert("imgfs@machine").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    with nginx(tmp_path / "nginx", passing_to(upstream.host), settings) as front:
        server = f'server = "https://{front.authority}"\n'
        configure(certs, server)
        with refused(errno.EREMOTEIO):
            mounted.image(NAME).stat()
        assert "TLS with" in error_of(mounted.path / "images" / HOST)
        configure(certs, f'{server}ca = "{tmp_path}/ca.pem"\n')
        until(lambda: "answered 400" in failing(mounted))
        configure(certs, f'{server}ca = "{tmp_path}/ca.pem"\nclient = "{tmp_path}/me.pem"\n')
        assert until(lambda: read(mounted)) == data


def failing(mounted: Mounted) -> str:
    """Try once more and return the last error of HOST.

    Callers must retry, because imgfs caches a failure for a short time.
    """
    run("stat", mounted.image(NAME))
    return error_of(mounted.path / "images" / HOST)


def certificates(directory: Path, servers: trustme.CA, clients: trustme.CA) -> str:
    """Return nginx TLS settings: a certificate from `servers`. Clients need a certificate from `clients`."""
    own = servers.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(directory / "nginx.key")
    own.cert_chain_pems[0].write_to_path(directory / "nginx.crt")
    clients.cert_pem.write_to_path(directory / "clients.pem")
    return (
        f"ssl_certificate {directory}/nginx.crt; ssl_certificate_key {directory}/nginx.key;"
        f"ssl_client_certificate {directory}/clients.pem; ssl_verify_client on;"
    )


def test_docker_ca_file_for_an_ipv6_address(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, tmp_path: Path
) -> None:
    servers = trustme.CA()
    own = servers.issue_cert("::1")
    own.private_key_pem.write_to_path(tmp_path / "nginx.key")
    own.cert_chain_pems[0].write_to_path(tmp_path / "nginx.crt")
    made, data = noisy("ipv6")
    push(upstream, made)
    settings = f"ssl_certificate {tmp_path}/nginx.crt; ssl_certificate_key {tmp_path}/nginx.key;"
    with nginx(tmp_path / "nginx", passing_to(upstream.host), settings) as front:
        directory = certs / f"[::1]:{front.port}"
        directory.mkdir()
        servers.cert_pem.write_to_path(directory / "ca.crt")
        assert read(mounted, f"[::1]:{front.port}/box:1") == data


def test_pull_through_cache_serves_as_mirror_after_the_registry_stops(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, tmp_path: Path
) -> None:
    made, data = noisy("cache")
    push(upstream, made)
    with docker_registry(tmp_path / "cache", remote=f"http://{upstream.host}") as cache:
        configure(certs, f'server = "http://{upstream.host}"\n[host."http://{cache.host}"]\n', "_default")
        assert read(mounted) == data
        assert metric(mounted, "imgfs_registry_requests_total", host=cache.host, kind="blob") == 2
        assert metric(mounted, "imgfs_registry_requests_total", host=upstream.host, kind="blob") == 0
        until(lambda: any(f"ns={HOST}" in one.path for one in cache.accesses()))
        upstream.stop()
        second = tmp_path / "second"
        second.mkdir()
        with Mounted(second, f"{CONFIG}hosts_path = [{json.dumps(str(certs))}]\n") as other:
            other.start()
            assert read(other) == data


@pytest.mark.parametrize(
    ("location", "failure"),
    [
        ("add_header Retry-After 50 always; return 429;", "RateLimited"),
        ("add_header Retry-After 50 always; return 503;", "RegistryFailed"),
        ("proxy_pass http://127.0.0.1:{dead}; ", "RegistryFailed"),
        ("return 444;", "Unreachable"),
    ],
)
def test_failing_mirror_costs_one_manifest_request(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, tmp_path: Path, location: str, failure: str
) -> None:
    made, data = noisy(failure)
    push(upstream, made)
    with nginx(tmp_path / "nginx", location.format(dead=free_port())) as mirror:
        configure(certs, f'server = "http://{upstream.host}"\n[host."http://{mirror.authority}"]\n')
        assert read(mounted) == data
        asked = {
            kind: metric(mounted, "imgfs_registry_requests_total", host=mirror.authority, kind=kind)
            for kind in ("manifest", "blob")
        }
        assert asked["manifest"] == 1
        assert asked["blob"] == (2 if "proxy_pass" in location else 0)
        assert metric(mounted, "imgfs_registry_failures_total", host=mirror.authority, error=failure) > 0
        rests = metric(mounted, "imgfs_registry_pauses_total", host=mirror.authority)
        assert rests == ("Retry-After" in location)
        assert metric(mounted, "imgfs_registry_retries_total", host=upstream.host) == 0


def test_slow_mirror_is_not_treated_as_a_failure(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, tmp_path: Path
) -> None:
    made, data = noisy("slow")
    push(upstream, made)
    with nginx(tmp_path / "nginx", passing_to(upstream.host, "limit_rate 300k")) as mirror:
        configure(certs, f'server = "http://{upstream.host}"\n[host."http://{mirror.authority}"]\n')
        assert read(mounted) == data
        assert metric(mounted, "imgfs_registry_received_bytes_total", host=mirror.authority) > SIZE
        assert metric(mounted, "imgfs_registry_received_bytes_total", host=upstream.host) == 0


@pytest.mark.parametrize("as_content", [False, True])
def test_layer_download_resumes_from_the_registry_at_the_same_offset(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, as_content: bool
) -> None:
    made, data = noisy("cut")
    push(upstream, made)
    blob = made.layers[0]
    with FakeRegistry() as mirror:
        made.add_to(mirror, "box", "1")
        mirror.fault(cut_at(100_000), blob.digest)
        configure(certs, f'server = "http://{upstream.host}"\n[host."{mirror.url}"]\n')
        assert mounted.image(NAME).exists()
        if as_content:
            assert (mounted.content / blob.digest).read_bytes() == blob.blob
        else:
            assert read(mounted) == data
        assert [one.range for one in mirror.log if blob.digest in one.path] == [None]
        came = metric(mounted, "imgfs_registry_received_bytes_total", host=upstream.host)
        assert came == len(blob.blob) - 100_000
    assert_verified(mounted.state)


@pytest.mark.parametrize("as_content", [False, True])
def test_mirror_with_wrong_bytes_is_dropped_and_logged(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, as_content: bool
) -> None:
    made, data = noisy("lie")
    push(upstream, made)
    blob = made.layers[0]
    with FakeRegistry() as mirror:
        made.add_to(mirror, "box", "1")
        mirror.fault(wrong_bytes(), blob.digest, times=None)
        configure(certs, f'server = "http://{upstream.host}"\n[host."{mirror.url}"]\n')
        assert mounted.image(NAME).exists()
        if as_content:
            assert (mounted.content / blob.digest).read_bytes() == blob.blob
        else:
            assert read(mounted) == data
        assert sum(blob.digest in one.path for one in mirror.log) == 1
        said = [json.loads(line) for line in mounted.log().splitlines() if "sent wrong bytes" in line]
        assert [(one["host"], one["digest"]) for one in said] == [(mirror.host, blob.digest)]
    assert_verified(mounted.state)


@pytest.mark.parametrize("as_content", [False, True])
def test_each_mirror_with_wrong_bytes_is_dropped_and_logged(
    mounted: Mounted, upstream: DockerRegistry, certs: Path, as_content: bool
) -> None:
    made, data = noisy("lies")
    push(upstream, made)
    blob = made.layers[0]
    with FakeRegistry() as first, FakeRegistry() as second, FakeRegistry() as third:
        liars = (first, second, third)
        for mirror in liars:
            made.add_to(mirror, "box", "1")
            mirror.fault(wrong_bytes(), blob.digest, times=None)
        hosts = "".join(f'[host."{mirror.url}"]\n' for mirror in liars)
        configure(certs, f'server = "http://{upstream.host}"\n{hosts}')
        assert mounted.image(NAME).exists()
        if as_content:
            assert (mounted.content / blob.digest).read_bytes() == blob.blob
        else:
            assert read(mounted) == data
        assert [sum(blob.digest in one.path for one in mirror.log) for mirror in liars] == [1, 1, 1]
        said = [json.loads(line) for line in mounted.log().splitlines() if "sent wrong bytes" in line]
        assert [one["host"] for one in said] == [mirror.host for mirror in liars]
    assert_verified(mounted.state)


def test_mirror_is_not_blamed_for_a_corrupt_partial_download(mounted: Mounted, certs: Path) -> None:
    made, _ = noisy("beginning")
    blob = made.layers[0]
    with FakeRegistry() as mirror, FakeRegistry() as registry:
        for one in (mirror, registry):
            made.add_to(one, "box", "1")
        configure(certs, f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
        assert mounted.image(NAME).exists()
        (mounted.content / f"ingest/blob-{blob.digest}").write_bytes(bytes(100_000))
        assert until((mounted.content / blob.digest).read_bytes) == blob.blob
        assert [one.range for one in mirror.log if blob.digest in one.path] == [
            f"bytes=100000-{len(blob.blob) - 1}", None,
        ]  # fmt: skip
        assert not [one for one in registry.log if blob.digest in one.path]
        assert "sent wrong bytes" not in mounted.log()


def test_hosts_with_only_wrong_bytes_get_at_most_one_retry_each(mounted: Mounted, certs: Path) -> None:
    made, data = noisy("all lie")
    blob = made.layers[0]
    with FakeRegistry() as mirror, FakeRegistry() as registry:
        faults = list[Fault]()
        for one in (mirror, registry):
            made.add_to(one, "box", "1")
            faults.append(one.fault(wrong_bytes(), blob.digest, times=None))
        configure(certs, f'server = "{registry.url}"\n[host."{mirror.url}"]\n')
        with refused(errno.EBADMSG):
            read(mounted)
        told = error_of(mounted.content / blob.digest)
        assert mirror.host in told or registry.host in told
        assert sum(one.met for one in faults) <= 4
        for one in faults:
            one.times = 0
        assert until(lambda: read(mounted)) == data


def test_hosts_toml_change_applies_without_restart_and_errors_are_reported(mounted: Mounted, certs: Path) -> None:
    with FakeRegistry() as registry:
        small("told").add_to(registry, "box", "1")
        configure(certs, f'server = "{registry.url}"\nskip_verify = "yes"\n')
        with refused(errno.EREMOTEIO):
            mounted.image(NAME).stat()
        assert f"{certs}/{HOST}/hosts.toml: skip_verify: expected true" in error_of(mounted.path / "images" / HOST)
        configure(certs, f'server = "{registry.url}"\nskip_verfy = true\n')
        until(lambda: mounted.image(NAME).exists())
        assert "did you mean 'skip_verify'?" in mounted.log()


def test_http_proxy_variable_is_used_and_its_password_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeRegistry() as proxy:
        made, data = noisy("proxy")
        made.add_to(proxy, "box", "1")
        monkeypatch.setenv("http_proxy", proxy.url.replace("http://", "http://user:canary@"))
        with Mounted(tmp_path, f'{CONFIG}plain_http = ["{HOST}"]\n') as mount:
            mount.start()
            assert read(mount) == data
            assert proxy.log[0].path == f"http://{HOST}/v2/box/manifests/1"
            assert "proxy-authorization" in proxy.log[0].headers
            made_up = mount.image(f"{HOST}/other:1")
            assert not made_up.exists()
            assert "canary" not in mount.log()
            assert "canary" not in error_of(mount.path / "images" / HOST)
