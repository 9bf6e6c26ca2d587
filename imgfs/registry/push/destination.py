"""The destination of a push: blobs, manifests and the fallback index of referrers in one repository."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import msgspec
import trio

from imgfs.errors import AccessDenied, ImgfsError, Malformed, NotFound, RegistryFailed, VerificationFailed
from imgfs.oci.descriptor import OCI_INDEX, Descriptor
from imgfs.oci.digest import Digest, is_digest
from imgfs.oci.manifest import decode_json
from imgfs.oci.reference import Reference
from imgfs.registry.call import Call
from imgfs.registry.exchange import Exchange, Unsure
from imgfs.registry.hosts.endpoint import Endpoint
from imgfs.registry.http.body import drain
from imgfs.registry.http.request import Outgoing
from imgfs.registry.lists import fallback_tag, with_query
from imgfs.registry.manifests import ACCEPT, Manifests
from imgfs.registry.push.sessions import Sessions, UploadTarget
from imgfs.registry.push.upload import (
    DONE,
    ENDED,
    JUDGED,
    Read,
    Sending,
    Upload,
    another_digest,
    closed,
    following,
    refusal,
)
from imgfs.registry.retry import FailureCallback, Tries, ignore_failure

ACCESS = "pull,push"
ENDING = "pull,push,delete"
"""Actions for ending an upload. docker-registry requires `delete` for it."""
LEAVING_SECONDS = 1.0
_log = logging.getLogger("imgfs.registry")


def entry_of(descriptor: Descriptor, data: bytes) -> dict[str, Any]:
    """Return the entry of a referring manifest for the index of referrers. `data` is the manifest's content."""
    document = cast("dict[str, Any]", decode_json(data, f"manifest {descriptor.digest}"))
    config, annotations = document.get("config"), document.get("annotations")
    of_config = cast("dict[str, Any]", config).get("mediaType") if isinstance(config, dict) else None
    entry: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if artifact_type := document.get("artifactType") or of_config:
        entry["artifactType"] = artifact_type
    return entry | ({"annotations": annotations} if annotations else {})


def with_entry(index: bytes | None, entry: dict[str, Any], what: str) -> bytes | None:
    """Return `index` (None: there is none yet) with `entry` appended, or None if the index lists that digest already.

    Everything else in the index is kept. Raises Malformed if it is not an index; the message begins with `what`.
    """
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    if index is not None:
        document = _object(decode_json(index, what), what)
    listed = document.get("manifests")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in cast("list[object]", listed)):
        raise Malformed(f"{what}: is no index, but stands where one of referrers belongs; remove that tag")
    entries = cast("list[dict[str, Any]]", listed)
    if any(one.get("digest") == entry["digest"] for one in entries):
        return None
    return msgspec.json.encode(document | {"manifests": [*entries, entry]})


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{what}: is no index, but stands where one of referrers belongs; remove that tag")
    return cast("dict[str, Any]", value)


@dataclass(frozen=True, slots=True)
class Gates:
    """Limits for pushes to one host: concurrent checks and uploads, and one change of a referrers index at a time."""

    questions: trio.Semaphore
    uploads: trio.Semaphore
    lists: trio.Lock = field(default_factory=trio.Lock)


class Destination:
    """A repository at the host that receives the pushes for its registry.

    Every method raises NotFound (the registry reports that the repository is missing), AccessDenied, RateLimited,
    RegistryFailed, Unreachable or TimedOut. Methods that send content raise RegistryFailed also if the registry accepts
    no pushes. Cancelling a method closes its connection. `gates` limit the concurrent requests to the host.
    """

    def __init__(
        self,
        exchange: Exchange,
        sessions: Sessions,
        manifests: Manifests,
        where: Endpoint,
        repository: str,
        gates: Gates,
    ) -> None:
        self.repository = repository
        self._exchange = exchange
        self._sessions = sessions
        self._where = where
        self._manifests = manifests
        self._gates = gates

    @property
    def authority(self) -> str:
        """The host that receives the push, as in URLs."""
        return self._where.authority

    @property
    def mirror(self) -> str | None:
        """The host, if it is a mirror that receives the pushes for its registry; None if it is the registry."""
        return self._where.authority if self._where.mirror else None

    async def has_blob(self, digest: Digest) -> bool:
        """Return whether the repository has the blob, by one HEAD (distribution-spec, "Checking if content exists")."""
        return await self._exists(self._where.url(self.repository, "blobs", digest), str(digest)) is not None

    async def has_manifest(self, selector: str, digest: Digest) -> bool:
        """Return whether the tag or digest `selector` names the manifest or index with `digest` in this repository."""
        url = self._where.url(self.repository, "manifests", selector)
        stated = await self._exists(url, selector, Accept=ACCEPT)
        return stated is not None and (stated == digest or (selector == digest and not is_digest(stated)))

    async def mount(self, digest: Digest, repositories: Iterable[str]) -> str | None:
        """Ask the registry to mount the blob from one of its other repositories. Returns that repository, or None.

        None is no failure: the caller then sends the blob with `upload`. A caller that does not send it must call
        `leave`, because a refused mount opens an upload (distribution-spec, "Mounting a blob from another repository").
        """
        for repository in repositories:
            url = with_query(self._where.uploads(self.repository), mount=digest)
            call = replace(
                self._call("mount", digest),
                method="POST",
                url=with_query(url, **{"from": repository}),
                expects=JUDGED,
                source=repository,
            )
            try:
                async with self._gates.questions:
                    answer = await self._exchange.open(call, self._tries())
                    await closed(answer)
            except (NotFound, AccessDenied, RegistryFailed):
                continue  # this may be a refusal by the other repository; otherwise the upload raises it
            if answer.status == 201:
                await self.leave(digest)
                return repository
            if (
                answer.status == 202
                and (begun := following(call, answer))
                and not self._sessions.spare(self._target(digest), begun)
            ):
                await self._end(digest, begun)
        return None

    async def leave(self, digest: Digest) -> None:
        """End the unused upload that a refused mount of the blob has opened. Raises nothing.

        This takes at most a second. It happens even if the caller is cancelled.
        """
        if spare := self._sessions.take(self._target(digest)):
            with trio.CancelScope(deadline=trio.current_time() + LEAVING_SECONDS, shield=True):
                await self._end(digest, spare)

    async def upload(
        self,
        descriptor: Descriptor,
        read: Read,
        at: Callable[[int], object],
        failed: FailureCallback = ignore_failure,
    ) -> None:
        """Send the blob; on return the repository has it (see Upload).

        At most `limits.uploads` run at a host at a time.
        """
        digest = descriptor.digest
        template = replace(
            self._call("upload", digest), method="POST", url=self._where.uploads(self.repository), expects=JUDGED
        )
        blob = Sending(descriptor, read, at, failed)
        async with self._gates.uploads:
            await Upload(self._exchange, self._sessions, template, blob, partial(self.has_blob, digest)).run()
        await self.leave(digest)

    async def put_manifest(self, selector: str, descriptor: Descriptor, data: bytes) -> Digest | None:
        """Push a manifest or index under the tag or digest `selector`.

        Returns the subject that the registry recognized.

        Raises VerificationFailed if the registry states another digest. Source: distribution-spec, "Pushing Manifests".
        """
        call = replace(
            self._call("push", selector),
            method="PUT",
            url=self._where.url(self.repository, "manifests", selector),
            expects=JUDGED,
            outgoing=Outgoing.of(data, descriptor.media_type),
            repeatable=selector == descriptor.digest,
        )
        tries = self._tries()
        while True:
            try:
                answer = await self._exchange.open(call, tries)
                break
            except Unsure:
                # The push may have succeeded. Another client may have moved the tag since then; in that case, push
                # again.
                if await self.has_manifest(selector, descriptor.digest):
                    return None
        code = await closed(answer)
        if answer.status not in DONE:
            raise refusal(call, answer, code)
        if other := another_digest(answer, descriptor.digest):
            raise VerificationFailed(
                f"{call.subject}: registry {call.host} stored it as {other}, expected {descriptor.digest}; push again"
            )
        subject = answer.headers.get("oci-subject", "")
        return Digest(subject) if is_digest(subject) else None

    async def list_referrer(self, subject: Digest, descriptor: Descriptor, data: bytes) -> bool:
        """Add a manifest to the index of referrers of `subject`, for registries without a referrers API.

        Returns False if the index lists the manifest already. Raises Malformed if the tag is not an index. If two
        clients on different machines do this concurrently, one entry may be lost; distribution-spec accepts this.
        """
        tag = fallback_tag(subject)
        reference = Reference(self._where.host, self.repository, tag)
        async with self._gates.lists:
            try:
                _, known = await self._manifests.fetch(reference, self._where, self._tries())
            except NotFound:
                known = None
            index = with_entry(known, entry_of(descriptor, data), str(reference))
            if index is None:
                return False
            await self.put_manifest(tag, Descriptor(Digest.of(index), len(index), OCI_INDEX), index)
            return True

    async def _exists(self, url: str, what: str, **headers: str) -> str | None:
        """Return the digest that the registry states for `url` ("" if it states none), or None if nothing is there."""
        call = replace(self._call("exists", what), method="HEAD", url=url, headers=headers)
        try:
            async with self._gates.questions:
                answer = await self._exchange.open(call, self._tries())
                await drain(answer)
        except (NotFound, RegistryFailed):
            # A registry that cannot answer (caches answer 500) counts as not having it. Sending it then raises the
            # reason.
            return None
        return answer.headers.get("docker-content-digest", "")

    async def _end(self, digest: Digest, url: str) -> None:
        """Ask the registry to drop an upload. A registry that cannot do this drops it after a while by itself."""
        call = replace(self._call("upload", digest), method="DELETE", url=url, expects=ENDED, access=ENDING)
        try:
            async with self._gates.questions:
                await drain(await self._exchange.open(call, self._tries()))
        except ImgfsError as error:
            _log.info("an upload stays open", extra={"host": self._where.host, "error": error.message})

    def _target(self, digest: Digest) -> UploadTarget:
        return UploadTarget(self._where.base, self.repository, digest)

    def _call(self, kind: str, what: str) -> Call:
        place = f"{self._where.host}/{self.repository}"
        subject = f"push of {what} to {place}" if is_digest(what) else f"push to {place}:{what}"
        return Call(kind, self._where, self.repository, "", subject, access=ACCESS)

    def _tries(self) -> Tries:
        return self._exchange.tries(self._where.host)
