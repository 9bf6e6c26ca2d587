"""A fake registry that accepts pushes, with scripted faults: whole blobs, blobs in parts, mounts and manifests.

Each repository has its own blobs. A blob of another repository is there after it was mounted (distribution-spec,
"Push").
"""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass, field, replace
from io import BufferedIOBase
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from imgfs.oci.descriptor import OCI_MANIFEST
from imgfs.oci.digest import Digest, is_digest
from imgfs.testing.registry import FakeRegistry
from imgfs.testing.reply import ReceivedRequest, Reply, error, json_reply

_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([^/]*)\Z")
_OBJECT = re.compile(r"/v2/(.+)/(blobs|manifests)/([^/]+)\Z")
_CONTENT_RANGE = re.compile(r"(\d+)-(\d+)\Z")
_SENDING = frozenset({"POST", "PATCH", "PUT", "DELETE"})


@dataclass(slots=True)
class UploadSession:
    """An unfinished upload."""

    repository: str
    data: bytearray = field(default_factory=bytearray)


class PushRegistry(FakeRegistry):
    """A registry whose repositories have what was pushed to them or mounted there.

    Scripted faults apply before anything is stored. `takes_parts`: PATCH is supported. `mounts`: blobs can be mounted.
    `tells_subject`: the subject of a manifest is acknowledged. `elsewhere` is the prefix of upload URLs,
    `https://host`; "" makes them relative, None absolute. `forgets`: the size of an unfinished upload is unknown. Each
    of `cuts` breaks one upload after that many bytes, which are kept.
    """

    def __init__(self, *, token: bool = False, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(token=token, tls=tls)
        self.repositories: dict[str, set[str]] = {}
        """Digests by repository."""
        self.sessions: dict[str, UploadSession] = {}
        self.takes_parts = True
        self.takes_pushes = True
        self.mounts = True
        self.tells_subject = True
        self.forgets = False
        self.least_part = 0
        self.elsewhere: str | None = None
        self.cuts: list[int] = []
        self._begun = 0

    def add(self, repository: str, data: bytes) -> Digest:
        """Add a blob to a repository."""
        digest = self.add_blob(data)
        self._has(repository).add(digest)
        return digest

    def add_manifest(self, repository: str, tag: str | None, data: bytes, media_type: str = OCI_MANIFEST) -> Digest:
        """Add a manifest to a repository, with those of its blobs that exist."""
        digest = super().add_manifest(repository, tag, data, media_type)
        self._has(repository).update({digest, *_children(json.loads(data))})
        return digest

    def sent(self) -> int:
        """Return the bytes of all request bodies so far."""
        return sum(len(request.body) for request in self.log)

    def asked(self, *kinds: str) -> list[str]:
        """Return methods and subjects of the requests, in order, optionally of some `kinds`: `upload`, `blobs`,
        `manifests`, `token`.
        """
        told = [(request.method, _kind(urlsplit(request.path).path)) for request in self.log]
        return [f"{method} {kind}" for method, kind in told if not kinds or kind in kinds]

    def tagged_names(self) -> list[str]:
        """Return every tag of every repository."""
        return sorted(tag for _, tag in self._tags)

    def manifest(self, repository: str, selector: str) -> tuple[bytes, str] | None:
        """Return bytes and media type of a repository's manifest by tag or digest, or None."""
        digest = selector if is_digest(selector) else self._tags.get((repository, selector), "")
        return self._manifests.get(digest) if digest in self._has(repository) else None

    def blob(self, repository: str, digest: str) -> bytes | None:
        """Return a repository's blob, or None."""
        return bytes(self._blobs[digest]) if digest in self._has(repository) and digest in self._blobs else None

    def receive(self, request: ReceivedRequest, length: int, file: BufferedIOBase) -> bool:
        """Read a body. The received part of a broken one is kept in its upload."""
        found = _UPLOAD.match(unquote(urlsplit(request.path).path))
        session = self.sessions.get(found[2]) if found is not None else None
        if session is None or not length or not self.cuts:
            return super().receive(request, length, file)
        request.body = file.read(min(self.cuts.pop(0), length))
        session.data += request.body
        with self._lock:
            self.log.append(request)
        return False

    def answer(self, request: ReceivedRequest) -> Reply | None:
        """Answer a request. A request that a fault hits has no effect, unless the fault is only a delay."""
        with self._lock:
            fault = next((one for one in self._faults if one.takes(request)), None)
            if fault is not None and request.method in _SENDING:
                fault.met += 1
                reply = fault.action(Reply(0))
                if reply is not None and not reply.status:
                    reply = fault.action(self._plan(request))
                request.status = reply.status if reply is not None else 0
                self.log.append(request)
                return reply
        return super().answer(request)

    def _has(self, repository: str) -> set[str]:
        return self.repositories.setdefault(repository, set())

    def _plan(self, request: ReceivedRequest) -> Reply:
        path, query = unquote(urlsplit(request.path).path), parse_qs(urlsplit(request.path).query)
        if found := _UPLOAD.match(path):
            return self._upload(request, found[1], found[2], query)
        if found := _OBJECT.match(path):
            repository, kind, selector = found.groups()
            if request.method == "PUT" and kind == "manifests":
                return self._put(request, repository, selector)
            digest = selector if is_digest(selector) else self._tags.get((repository, selector), "")
            if digest not in self._has(repository):
                return self._refused(request, f"repository:{repository}:pull") or error(404, "UNKNOWN")
        return super()._plan(request)

    def _upload(self, request: ReceivedRequest, repository: str, id: str, query: dict[str, list[str]]) -> Reply:
        scopes = f"repository:{repository}:{'delete' if request.method == 'DELETE' else 'pull,push'}"
        origin = query.get("from", [""])[0]
        if refused := self._refused(request, f"{scopes} repository:{origin}:pull" if origin else scopes):
            return refused
        if not self.takes_pushes:
            return error(405, "UNSUPPORTED")
        if request.method == "POST":
            return self._begin(repository, origin, query.get("mount", [""])[0])
        session = self.sessions.get(id)
        if session is None or session.repository != repository:
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "DELETE":
            del self.sessions[id]
            return Reply(204)
        if request.method == "GET":
            return error(400, "BLOB_UPLOAD_INVALID") if self.forgets else self._state(id, 204)
        if request.method == "PATCH" and not self.takes_parts:
            return error(405, "UNSUPPORTED")
        return self._more(request, id, session, query.get("digest", [""])[0])

    def _begin(self, repository: str, origin: str, mount: str) -> Reply:
        if mount and self.mounts and mount in self._has(origin):
            self._has(repository).add(mount)
            return Reply(201).headed(Location=f"/v2/{repository}/blobs/{mount}")
        self._begun += 1
        id = f"canary-session-{self._begun}"
        self.sessions[id] = UploadSession(repository)
        reply = self._state(id, 202)
        return reply.headed(OCI_Chunk_Min_Length=str(self.least_part)) if self.least_part else reply

    def _state(self, id: str, code: int) -> Reply:
        session = self.sessions[id]
        path = f"/v2/{session.repository}/blobs/uploads/{id}?state=canary"
        start = self.url if self.elsewhere is None else self.elsewhere
        reply = Reply(code).headed(Location=f"{start}{path}")
        return reply.headed(Range=f"0-{len(session.data) - 1}") if session.data else reply.headed(Range="0-0")

    def _more(self, request: ReceivedRequest, id: str, session: UploadSession, digest: str) -> Reply:
        """Handle PATCH, which appends, or PUT, which completes."""
        found = _CONTENT_RANGE.match(request.headers.get("content-range", ""))
        if found is not None and int(found[1]) != len(session.data):
            return replace(self._state(id, 204), status=416)
        session.data += request.body
        if request.method == "PATCH":
            return self._state(id, 202)
        del self.sessions[id]
        data = bytes(session.data)
        if not is_digest(digest) or Digest.of(data, Digest(digest).algorithm) != digest:
            return error(400, "DIGEST_INVALID")
        self._blobs[digest] = data
        self._has(session.repository).add(digest)
        return Reply(201).headed(Location=f"/v2/{session.repository}/blobs/{digest}", Docker_Content_Digest=digest)

    def _put(self, request: ReceivedRequest, repository: str, selector: str) -> Reply:
        if refused := self._refused(request, f"repository:{repository}:pull,push"):
            return refused
        document: dict[str, Any] = json.loads(request.body)
        if missing := [one for one in _children(document) if one not in self._has(repository)]:
            return error(400, "MANIFEST_BLOB_UNKNOWN").headed(X_Missing=missing[0])
        tag = None if is_digest(selector) else selector
        if tag is None and selector != Digest.of(request.body, Digest(selector).algorithm):
            return error(400, "DIGEST_INVALID")
        digest = super().add_manifest(repository, tag, request.body, request.headers["content-type"])
        self._has(repository).add(digest)
        reply = json_reply(201, {}).headed(Docker_Content_Digest=digest)
        subject = document.get("subject", {}).get("digest", "")
        return reply.headed(OCI_Subject=subject) if subject and self.tells_subject else reply


def _children(document: dict[str, Any]) -> list[str]:
    """Return the digests that a manifest needs. Registries do not store foreign layers."""
    own = [document["config"], *document.get("layers", [])] if "config" in document else document.get("manifests", [])
    return [
        one["digest"]
        for one in own
        if "foreign" not in one.get("mediaType", "") and "nondistributable" not in one.get("mediaType", "")
    ]


def _kind(path: str) -> str:
    if _UPLOAD.match(path):
        return "upload"
    found = _OBJECT.match(path)
    return found[2] if found else "token" if path == "/token" else "other"
