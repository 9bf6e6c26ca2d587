"""The registry, and links to it. Owns their processes and ports; the pushed images come from `images`."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .images import Image, tags
from .processes import Failed, run, start, stop, wait_until

FAR_RTT_MS = 50
FAR_MBPS = 100
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{store}"}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def free_port() -> int:
    """Return a loopback port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a registry: direct (near) or behind a link."""

    port: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def reference(self, image: Image) -> str:
        return f"{self.host}/{image.label}"

    def request(self, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send one request on its own connection. Raises OSError if the connection is refused."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, headers={"Accept": _MANIFEST})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def answers(self, path: str) -> bool:
        try:
            return self.request("GET", path)[0] == 200
        except OSError:
            return False


class Registry:
    """docker-registry with filesystem storage, kept between runs, on a free port."""

    def __init__(self, work: Path) -> None:
        self._store = work / "registry"
        self._store.mkdir(parents=True, exist_ok=True)
        self.near = Address(free_port())
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Registry:
        config, log = self._store / "config.yml", self._store / "log"
        config.write_text(_CONFIG.format(store=self._store, port=self.near.port))
        log.write_bytes(b"")
        env = {"OTEL_TRACES_EXPORTER": "none"}
        self._process = start("docker-registry", "serve", config, log=log, env=env)
        wait_until(lambda: self.near.answers("/v2/"), "docker-registry", self._process, log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            stop(self._process)

    def push(self, image: Image) -> None:
        """Push an image unless the registry has exactly this image. Raises Failed if skopeo fails.

        Without --preserve-digests skopeo may use a gzip layer that the registry has in place of the zstd layer.
        """
        status, headers, _ = self.near.request("HEAD", f"/v2/{image.name}/manifests/{image.variant}")
        if status == 200 and headers["Docker-Content-Digest"] == tags(image.layout)[image.variant]:
            return
        source, target = f"oci:{image.layout}:{image.variant}", f"docker://{self.near.reference(image)}"
        run(
            "skopeo", "--insecure-policy", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", source, target
        )


class ShapedLink:
    """A shaper before a registry, in its own process: with a delay and a bandwidth limit, or only counting."""

    def __init__(self, registry: Registry, work: Path, rtt_ms: float = 0, mbps: float = 0) -> None:
        self.address = Address(free_port())
        self._upstream = registry.near.port
        self._log = work / "shaper.log"
        self._limits = ("--rtt", str(rtt_ms), "--mbps", str(mbps))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ShapedLink:
        ports = str(self.address.port), str(self._upstream)
        self._process = start(sys.executable, "-m", "benchmarks.shaper", *ports, *self._limits, log=self._log)
        wait_until(lambda: self.address.answers("/-/counts"), "the shaper", self._process, self._log)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            stop(self._process)

    def zero(self) -> None:
        self.address.request("POST", "/-/zero")

    def counts(self) -> dict[str, int]:
        """Return the requests since the last `zero`, by method, status and kind."""
        status, _, body = self.address.request("GET", "/-/counts")
        if status != 200:
            raise Failed(f"the shaper answers {status} instead of its counts")
        counted: dict[str, Any] = json.loads(body)
        return counted["requests"]
