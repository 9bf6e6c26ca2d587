"""A real nginx in front of a registry: TLS, client certificates, refusals and a slow line, as in production."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.programs import accepts, end, free_port, start, wait_ready

_CONFIG = """
daemon off;
worker_processes 1;
user root;
pid {directory}/pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log {directory}/access.log;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port}{tls};
    listen [::1]:{port}{tls};
    {certificates}
    location / {{
      {location}
    }}
  }}
}}
"""


class Nginx:
    """A running server. `authority` is its IPv4 address and port."""

    def __init__(self, directory: Path, port: int) -> None:
        self.port = port
        self.authority = f"127.0.0.1:{port}"
        self._access = directory / "access.log"

    def requests(self) -> list[str]:
        """Return the lines of the access log. nginx writes them after the answers."""
        return self._access.read_text().splitlines()


@contextmanager
def nginx(directory: Path, location: str, certificates: str = "") -> Generator[Nginx]:
    """Run an nginx on loopback that does `location` for every path, over TLS if `certificates` are given."""
    directory.mkdir(parents=True)
    port, log = free_port(), directory / "output.log"
    config = directory / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            directory=directory,
            port=port,
            tls=" ssl" if certificates else "",
            certificates=certificates,
            location=location,
        )
    )
    process = start("nginx", ["-c", str(config), "-p", str(directory), "-e", str(directory / "error.log")], log)
    try:
        wait_ready(process, lambda: accepts(port), log)
        yield Nginx(directory, port)
    finally:
        end(process)


def passing_to(authority: str, *more: str) -> str:
    """Return a location that forwards requests to the registry at `authority`."""
    settings = (f"proxy_pass http://{authority}", "proxy_set_header Host $http_host", "proxy_buffering off", *more)
    return "".join(f"{one};\n" for one in settings)
