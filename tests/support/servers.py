"""A real registry: Debian's docker-registry on a loopback port, and ways to push to it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from imgfs.oci.digest import Digest
from tests.support.programs import accepts, end, free_port, run, start, wait_ready

_ACCESS = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (?P<status>\d{3}) ')


class Access(NamedTuple):
    """One line of the registry's access log."""

    method: str
    path: str
    status: int


class DockerRegistry:
    """A docker-registry that can be stopped and started again on the same port with the same storage.

    `remote` is the URL of another registry, for which it is a pull-through cache. `redirect` is the URL of a server of
    `storage`/data, to which it redirects for blobs. `s3` are the options of its S3 driver; it then stores blobs there
    and redirects.
    """

    def __init__(
        self,
        storage: Path,
        auth: dict[str, object] | None = None,
        remote: str = "",
        redirect: str = "",
        s3: dict[str, object] | None = None,
    ) -> None:
        self.port = free_port()
        self.log = storage / "registry.log"
        self._config = storage / "config.json"
        self._process: subprocess.Popen[bytes] | None = None
        storage.mkdir(parents=True, exist_ok=True)
        files: dict[str, object] = {"rootdirectory": str(storage / "data")}
        kept = {"s3": s3} if s3 else {"filesystem": files}
        self._config.write_text(json.dumps(_config(kept, self.port, auth, remote, redirect)))

    @property
    def host(self) -> str:
        """The host part of a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and wait until it accepts connections."""
        assert not self.running, f"registry {self.host}: is already running"
        # The S3 driver fails on an empty certificate file, and needs none.
        environment = {"OTEL_TRACES_EXPORTER": "none", "AWS_CA_BUNDLE": ""}
        self._process = start("docker-registry", ["serve", str(self._config)], self.log, environment)
        wait_ready(self._process, lambda: accepts(self.port), self.log)

    def stop(self) -> None:
        """Stop as in an outage: connections are refused from now on. The storage stays."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def accesses(self) -> list[Access]:
        """Return the requests so far.

        A line is written after its answer, and maybe late. To prove that there was no request, use a CountingProxy.
        """
        text = self.log.read_text(errors="replace")
        return [Access(one["method"], one["path"], int(one["status"])) for one in _ACCESS.finditer(text)]


@contextmanager
def docker_registry(
    storage: Path,
    auth: dict[str, object] | None = None,
    remote: str = "",
    redirect: str = "",
    s3: dict[str, object] | None = None,
) -> Generator[DockerRegistry]:
    """Run a registry with its data below `storage` until the block ends.

    `auth` is that part of its configuration; without it, every client may do everything. For `remote`, `redirect` and
    `s3` see DockerRegistry.
    """
    registry = DockerRegistry(storage, auth, remote, redirect, s3)
    try:
        registry.start()
        yield registry
    finally:
        registry.stop()


def skopeo_push(layout: Path, tag: str, host: str, repository: str, login: str = "") -> None:
    """Copy `tag` of an OCI layout, all platforms, to the registry under the same tag with unchanged digests.

    `login` is `user:password`.
    """
    source, target = f"oci:{layout}:{tag}", f"docker://{host}/{repository}:{tag}"
    options = ["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"]
    run("skopeo", *options, *(["--dest-creds", login] if login else []), source, target)


class Upload:
    """A repository of a real registry to which images can be added (imgfs.testing.build.RegistryTarget).

    It pushes what skopeo does not copy from a layout: Docker media types, and manifests without a tag.
    """

    def __init__(self, host: str, repository: str) -> None:
        self._host = host
        self._repository = repository

    def add_blob(self, data: bytes, /) -> Digest:
        """Push a blob in one piece (distribution-spec, "POST then PUT")."""
        digest = Digest.of(data)
        location = self._send("POST", f"/v2/{self._repository}/blobs/uploads/", b"", {}, 202)
        place = urlsplit(location)
        query = f"{place.query}&digest={digest}" if place.query else f"digest={digest}"
        self._send("PUT", f"{place.path}?{query}", data, {"Content-Type": "application/octet-stream"}, 201)
        return digest

    def add_manifest(self, repository: str, tag: str | None, data: bytes, media_type: str, /) -> Digest:
        """Push a manifest under `tag`, or under its digest."""
        assert repository == self._repository, f"{repository}: blobs were pushed to {self._repository}"
        digest = Digest.of(data)
        self._send("PUT", f"/v2/{repository}/manifests/{tag or digest}", data, {"Content-Type": media_type}, 201)
        return digest

    def _send(self, method: str, path: str, data: bytes, headers: dict[str, str], expected: int) -> str:
        connection = HTTPConnection(self._host)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == expected, (
                f"{method} {path}: got {answer.status}, expected {expected}: {body[:300]!r}"
            )
            return answer.getheader("Location", "")
        finally:
            connection.close()


def _config(
    kept: dict[str, dict[str, object]], port: int, auth: dict[str, object] | None, remote: str, redirect: str
) -> dict[str, object]:
    elsewhere = {"storage": [{"name": "redirect", "options": {"baseurl": redirect}}]}
    return {
        **({"proxy": {"remoteurl": remote}} if remote else {}),
        **({"middleware": elsewhere} if redirect else {}),
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": False}},
        "storage": {**kept, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        **({"auth": auth} if auth else {}),
    }
