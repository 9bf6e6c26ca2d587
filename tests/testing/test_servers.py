"""The real registry serves, becomes unreachable and returns; the proxy in front of it counts requests."""

from __future__ import annotations

import json
from collections.abc import Generator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from imgfs.oci.descriptor import OCI_INDEX, OCI_MANIFEST
from imgfs.testing.images import ARM64, File, attestation, image, index, layer
from tests.support.programs import accepts, program, run, start, wait_ready
from tests.support.proxy import Request, counting_proxy
from tests.support.servers import Access, DockerRegistry, Upload, docker_registry, skopeo_push

SMALL = image([layer([File("etc/hostname", b"box\n")])])


@pytest.fixture(name="registry")
def _registry(tmp_path: Path) -> Generator[DockerRegistry]:
    with docker_registry(tmp_path / "registry") as server:
        yield server


def ask(host: str, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(host)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_skopeo_pushes_a_layout_with_every_platform_unchanged(registry: DockerRegistry, tmp_path: Path) -> None:
    several = index([SMALL, image(SMALL.layers, platform=ARM64), attestation(SMALL)])
    several.write_layout(tmp_path / "layout", "1.0")
    skopeo_push(tmp_path / "layout", "1.0", registry.host, "several/platforms")
    for reference in ("1.0", several.digest, *(one.digest for one in several.images)):
        accept = {"Accept": f"{OCI_INDEX}, {OCI_MANIFEST}"}
        answer, body = ask(registry.host, f"/v2/several/platforms/manifests/{reference}", headers=accept)
        assert answer.status == 200
        assert body in {several.document, *(one.document for one in several.images)}


@pytest.mark.parametrize("docker", [False, True])
def test_images_add_themselves_to_a_real_registry(registry: DockerRegistry, docker: bool) -> None:
    both = index(
        [image(SMALL.layers, docker=docker), image(SMALL.layers, platform=ARM64, docker=docker)], docker=docker
    )
    assert both.add_to(Upload(registry.host, "added"), "added", "latest") == both.digest
    inspected = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{registry.host}/added:latest")
    assert inspected == both.document
    config = run("skopeo", "inspect", "--config", "--tls-verify=false", f"docker://{registry.host}/added:latest")
    assert json.loads(config)["rootfs"]["diff_ids"] == SMALL.diff_ids


def test_during_an_outage_connections_are_refused_and_then_port_and_content_are_the_same(
    registry: DockerRegistry,
) -> None:
    SMALL.add_to(Upload(registry.host, "kept"), "kept", "1")
    host = registry.host
    registry.stop()
    assert not registry.running
    assert not accepts(registry.port)
    with pytest.raises(ConnectionRefusedError):
        ask(host, "/v2/")
    registry.start()
    assert registry.host == host
    assert ask(host, f"/v2/kept/blobs/{SMALL.layers[0].digest}")[1] == SMALL.layers[0].blob


def test_the_server_has_ended_after_the_block_even_if_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), docker_registry(tmp_path) as server:
        raise ZeroDivisionError
    assert not server.running
    assert not accepts(server.port)


def test_the_access_log_shows_method_path_and_status(registry: DockerRegistry) -> None:
    ask(registry.host, "/v2/absent/manifests/none")
    registry.stop()
    assert Access("GET", "/v2/absent/manifests/none", 404) in registry.accesses()


def test_the_proxy_passes_everything_and_counts_it(registry: DockerRegistry, tmp_path: Path) -> None:
    SMALL.write_layout(tmp_path / "layout", "1")
    blob = f"/v2/through/blobs/{SMALL.layers[0].digest}"
    with counting_proxy(registry.host) as proxy:
        skopeo_push(tmp_path / "layout", "1", proxy.host, "through")
        assert proxy.count("PUT", "/manifests/1") == 1
        proxy.requests.clear()
        answer, body = ask(proxy.host, blob, headers={"Range": "bytes=2-9"})
        assert (answer.status, body) == (206, SMALL.layers[0].blob[2:10])
        answer, body = ask(proxy.host, blob, "HEAD")
        assert (answer.status, body) == (200, b"")
        assert answer.getheader("Content-Length") == str(len(SMALL.layers[0].blob))
        assert proxy.requests == [Request("GET", blob, "bytes=2-9"), Request("HEAD", blob, "")]
        assert proxy.count(within=blob) == 2


def test_the_proxy_drops_the_connection_in_an_outage_and_still_counts(registry: DockerRegistry) -> None:
    with counting_proxy(registry.host) as proxy:
        registry.stop()
        with pytest.raises(ConnectionError):
            ask(proxy.host, "/v2/")
        assert proxy.count() == 1


def test_a_missing_program_fails_and_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="apt-get install containerd"):
        program("ctr")


def test_a_server_that_exits_at_once_fails_with_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start("docker-registry", ["serve", "/nowhere.yml"], log)
    with pytest.raises(AssertionError, match=r"before it served: .*configuration error"):
        wait_ready(process, lambda: False, log)
