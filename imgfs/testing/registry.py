"""A fake registry in this process, on loopback, with scripted faults: for tests, and for serving an OCI layout.

Read-only (distribution-spec, "Pull" and "Content Discovery"): manifests, blobs with single ranges, lists, bearer
tokens. Every answer is planned as a Reply, which a fault may change (imgfs.testing.faults). Nothing depends on time: a
stalled answer stalls until `release` or the end. `python -m imgfs.testing.registry DIR [--port N]` serves an image
layout directory.
"""

from __future__ import annotations

import argparse
import json
import mmap
import re
import signal
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from imgfs.oci.descriptor import OCI_INDEX, OCI_MANIFEST
from imgfs.oci.digest import Digest, is_digest
from imgfs.testing.faults import Action, Fault
from imgfs.testing.reply import CATALOG, PATH, Body, ReceivedRequest, Reply, error, json_reply
from imgfs.testing.server import ReplyServer, Valve

_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")
_REF_NAME = "org.opencontainers.image.ref.name"


class FakeRegistry:
    """A registry on an address of this machine. Every repository has all blobs and all manifests by digest.

    `tls` enables TLS. With `token`, every request needs a bearer token for its repository; `/token` gives one to every
    client for `expires_in` seconds, and `revoke` invalidates all of them. `realm` replaces the token URL in challenges.
    With `logins` (password by user) every request needs Basic. Lists have at most `page` entries per page. Without
    `has_referrers` there is no referrers API.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        token: bool = False,
        expires_in: int = 300,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.log: list[ReceivedRequest] = []
        self.tokens: dict[str, str] = {}
        """Valid tokens, each with its scope."""
        self.expires_in = expires_in
        self.realm = ""
        self.logins: dict[str, str] = {}
        self.page = 1000
        self.has_referrers = True
        self.valve = Valve()
        self._needs_token = token
        self._issued = 0
        self._blobs: dict[str, Body] = {}
        self._manifests: dict[str, tuple[bytes, str]] = {}
        self._tags: dict[tuple[str, str], Digest] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._address = address
        self._server = ReplyServer((address, port), self)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.valve.open()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """`ADDRESS:PORT`, as in references."""
        return f"{self._address}:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """`http://ADDRESS:PORT`, or https."""
        return f"{self._scheme}://{self.host}"

    def add_blob(self, data: bytes) -> Digest:
        """Serve `data` and return its digest."""
        digest = Digest.of(data)
        self._blobs[digest] = data
        return digest

    def add_manifest(self, repository: str, tag: str | None, data: bytes, media_type: str = OCI_MANIFEST) -> Digest:
        """Serve `data` as a manifest by its digest, and as `repository:tag` if a tag is given. Return the digest."""
        digest = Digest.of(data)
        self._manifests[digest] = data, media_type
        if tag is not None:
            self._tags[repository, tag] = digest
        return digest

    def add_layout(self, directory: Path) -> None:
        """Serve an OCI image layout.

        Its `ref.name` annotations give tags and repositories; the default is the directory's name.
        """
        for path in sorted((directory / "blobs").glob("*/*")):
            with path.open("rb") as file:
                self._blobs[f"{path.parent.name}:{path.name}"] = _mapped(file.fileno(), path.stat().st_size)
        for one in json.loads((directory / "index.json").read_bytes())["manifests"]:
            self._add_tree(one["digest"], one["mediaType"])
            name = str(one.get("annotations", {}).get(_REF_NAME, "latest"))
            repository, _, tag = name.rpartition(":")
            self._tags[repository or directory.resolve().name.lower(), tag] = Digest.parse(one["digest"])

    def _add_tree(self, digest: str, media_type: str) -> None:
        if digest in self._blobs:
            data = bytes(self._blobs[digest])
            self._manifests[digest] = data, media_type
            for one in json.loads(data).get("manifests", []):
                self._add_tree(one["digest"], one["mediaType"])

    def requests(self, kind: str | None = None) -> int:
        """Return the number of requests, of one kind (see ReceivedRequest.kind) or of all."""
        with self._lock:
            return sum(kind in {None, request.kind} for request in self.log)

    def reset(self) -> None:
        """Forget the request log and the faults."""
        with self._lock:
            self.log.clear()
            self._faults.clear()

    def revoke(self) -> None:
        """Invalidate all tokens."""
        self.tokens.clear()

    def release(self, count: int = 1) -> None:
        """Let `count` stalled answers continue."""
        self.valve.release(count)

    def fault(self, action: Action, match: str = "", times: int | None = 1) -> Fault:
        """Script a fault for requests whose `METHOD path` contains the pattern `match`.

        The earliest fault that matches applies.
        """
        fault = Fault(re.compile(match), action, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def receive(self, request: ReceivedRequest, length: int, file: BufferedIOBase) -> bool:
        """Read the body of `request`. An incomplete body gets no answer."""
        request.body = file.read(length)
        return len(request.body) == length

    def answer(self, request: ReceivedRequest) -> Reply | None:
        """Plan the answer to `request`, log it, and apply the matching fault."""
        with self._lock:
            fault = next((one for one in self._faults if one.takes(request)), None)
            reply: Reply | None = self._plan(request)
            if fault is not None:
                fault.met += 1
                reply = fault.action(reply)
            request.status = reply.status if reply is not None else 0
            self.log.append(request)
            return reply

    def _plan(self, request: ReceivedRequest) -> Reply:
        """Return the answer without faults."""
        parts = urlsplit(request.path)
        if parts.path == "/token":
            return self._token(" ".join(parse_qs(parts.query).get("scope", [])))
        found = PATH.match(unquote(parts.path))
        scope = "registry:catalog:*" if parts.path == CATALOG else _scope(found)
        if refused := self._refused(request, scope):
            return refused
        query = parse_qs(parts.query)
        if parts.path == CATALOG:
            names = sorted({name for name, _ in self._tags})
            return self._listed(parts.path, query, names, lambda some: {"repositories": some})
        if found is None:
            return json_reply(200 if parts.path == "/v2/" else 404, {})
        repository, kind, selector = found.groups()
        if kind == "manifests":
            return self._manifest(repository, selector)
        if kind == "blobs":
            return self._blob(request, selector)
        if kind == "tags":
            return self._tag_list(parts.path, query, repository)
        return self._referrers(parts.path, query, selector) if self.has_referrers else error(404, "UNSUPPORTED")

    def _refused(self, request: ReceivedRequest, scope: str) -> Reply | None:
        """Return the refusal of a request that lacks the authorization for `scope`, or None."""
        shown = request.headers.get("authorization", "")
        if self.logins and shown not in map(_basic, self.logins.items()):
            return error(401, "UNAUTHORIZED").headed(WWW_Authenticate='Basic realm="fake"')
        if self._needs_token and (shown not in self.tokens or not _allows(self.tokens[shown], scope)):
            return self._challenge(scope)
        return None

    def _token(self, scope: str) -> Reply:
        self._issued += 1
        token = f"canary-token-{self._issued}"
        self.tokens[f"Bearer {token}"] = scope
        return json_reply(200, {"token": token, "expires_in": self.expires_in})

    def _challenge(self, scope: str) -> Reply:
        challenge = f'Bearer realm="{self.realm or f"{self.url}/token"}",service="fake",scope="{scope}"'
        return error(401, "UNAUTHORIZED").headed(WWW_Authenticate=challenge)

    def _manifest(self, repository: str, selector: str) -> Reply:
        digest = selector if is_digest(selector) else self._tags.get((repository, selector), "")
        if digest not in self._manifests:
            return error(404, "MANIFEST_UNKNOWN")
        data, media_type = self._manifests[digest]
        return Reply(body=data).headed(Content_Type=media_type, Docker_Content_Digest=digest, ETag=f'"{digest}"')

    def _tag_list(self, path: str, query: dict[str, list[str]], repository: str) -> Reply:
        tags = sorted(tag for name, tag in self._tags if name == repository)
        if not tags:
            return error(404, "NAME_UNKNOWN")
        return self._listed(path, query, tags, lambda some: {"name": repository, "tags": some})

    def _referrers(self, path: str, query: dict[str, list[str]], subject: str) -> Reply:
        found = {
            digest: _referrer(digest, data, media_type)
            for digest, (data, media_type) in self._manifests.items()
            if b'"subject"' in data and json.loads(data).get("subject", {}).get("digest") == subject
        }
        wanted = query.get("artifactType")
        names = sorted(one for one, about in found.items() if wanted in (None, [about["artifactType"]]))

        def rendered(some: list[str]) -> dict[str, object]:
            return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [found[one] for one in some]}

        reply = self._listed(path, query, names, rendered).headed(Content_Type=OCI_INDEX)
        return reply.headed(OCI_Filters_Applied="artifactType") if wanted else reply

    def _listed(
        self, path: str, query: dict[str, list[str]], names: list[str], render: Callable[[list[str]], object]
    ) -> Reply:
        """Return the page after `last`, with a link to the next page."""
        last, size = query.get("last", [""])[0], min(self.page, int(query.get("n", ["1000"])[0]))
        rest = [name for name in names if name > last]
        reply = json_reply(200, render(rest[:size]))
        if len(rest) <= size:
            return reply
        kept = {key: values[0] for key, values in query.items()}
        return reply.headed(Link=f'<{path}?{urlencode({**kept, "last": rest[size - 1]})}>; rel="next"')

    def _blob(self, request: ReceivedRequest, digest: str) -> Reply:
        if digest not in self._blobs:
            return error(404, "BLOB_UNKNOWN")
        etag = f'"{digest}"'
        whole = Reply(body=self._blobs[digest]).headed(
            Content_Type="application/octet-stream", Docker_Content_Digest=digest, ETag=etag, Accept_Ranges="bytes"
        )
        found = _RANGE.match(request.range or "")
        return (
            whole if found is None or request.headers.get("if-range", etag) != etag else _part(whole, *found.groups())
        )


def _referrer(digest: str, data: bytes, media_type: str) -> dict[str, Any]:
    """Return the descriptor of a referrer in a list (distribution-spec, "Listing Referrers")."""
    document = json.loads(data)
    artifact_type = document.get("artifactType") or document.get("config", {}).get("mediaType", "")
    plain = {"mediaType": media_type, "digest": digest, "size": len(data), "artifactType": artifact_type}
    return plain | ({"annotations": document["annotations"]} if document.get("annotations") else {})


def _scope(found: re.Match[str] | None) -> str:
    return f"repository:{found[1]}:pull" if found else ""


def _allows(granted: str, needed: str) -> bool:
    """Return whether the scopes of a token include all actions that a request needs."""
    return set(_actions(needed)) <= set(_actions(granted))


def _actions(scopes: str) -> list[tuple[str, str]]:
    parts = [scope.rpartition(":") for scope in scopes.split()]
    return [(what, action) for what, _, actions in parts for action in actions.split(",")]


def _basic(login: tuple[str, str]) -> str:
    return f"Basic {b64encode(':'.join(login).encode()).decode()}"


def _part(whole: Reply, first: str, last: str) -> Reply:
    size = len(whole.body)
    start, end = int(first), min(int(last) + 1 if last else size, size)
    if start >= end:
        return Reply(416).headed(Content_Range=f"bytes */{size}")
    part = replace(whole, status=206, body=memoryview(whole.body)[start:end], whole=whole)
    return part.headed(Content_Range=f"bytes {start}-{end - 1}/{size}")


def _mapped(descriptor: int, size: int) -> Body:
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""


def main() -> None:
    """Serve an image layout until SIGTERM or SIGINT. Prints the host to stdout."""
    parser = argparse.ArgumentParser(description="Serve an OCI image layout as a registry on loopback.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with FakeRegistry(port=arguments.port) as registry:
        registry.add_layout(arguments.directory)
        print(registry.host, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
