"""Where a push goes: blobs, manifests and the index of referrers of one repository."""

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
from imgfs.registry.push.sessions import Place, Sessions
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
from imgfs.registry.retry import Told, Tries, nobody

ACCESS = "pull,push"
ENDING = "pull,push,delete"
"""For docker-registry, forgetting an upload is deleting."""
LEAVING_SECONDS = 1.0
_log = logging.getLogger("imgfs.registry")


def entry_of(descriptor: Descriptor, data: bytes) -> dict[str, Any]:
    """What the index says of a manifest that refers to something; `data` are its bytes."""
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
    """The `index` (None: there is none yet) with `entry` as its last; None if it lists that digest already.

    Whatever else is in it stays. Raises Malformed, beginning with `what`, where it is no index.
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
    """What bounds pushes to one host: questions and uploads at a time, and one change of a list of referrers."""

    questions: trio.Semaphore
    uploads: trio.Semaphore
    lists: trio.Lock = field(default_factory=trio.Lock)


class Destination:
    """A repository at the host that pushes of its registry go to.

    Every method raises NotFound (the repository, by the registry's word), AccessDenied, RateLimited, RegistryFailed,
    Unreachable, TimedOut; those that send RegistryFailed also where the registry takes no pushes. Cancelling one closes
    its connection. `gates` bound what goes on at the host at once.
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
        """The host that is pushed to, as URLs say it."""
        return self._where.authority

    @property
    def mirror(self) -> str | None:
        """The same where it is a mirror, which gets what is meant for its registry."""
        return self._where.authority if self._where.mirror else None

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has the blob: one HEAD (distribution-spec, "Checking if content exists")."""
        return await self._exists(self._where.url(self.repository, "blobs", digest), str(digest)) is not None

    async def has_manifest(self, selector: str, digest: Digest) -> bool:
        """Whether the tag or digest `selector` is, there, the manifest or index of `digest`."""
        url = self._where.url(self.repository, "manifests", selector)
        stated = await self._exists(url, selector, Accept=ACCEPT)
        return stated is not None and (stated == digest or (selector == digest and not is_digest(stated)))

    async def mount(self, digest: Digest, repositories: Iterable[str]) -> str | None:
        """Let the registry take the blob over from one of its other repositories; returns which, None if it does not.

        That is no failure: the blob has to be sent then, by `upload`. Who does not after all calls `leave`, as a
        refused mount has opened an upload (distribution-spec, "Mounting a blob from another repository").
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
                continue  # of the other repository, maybe; the upload will show
            if answer.status == 201:
                await self.leave(digest)
                return repository
            if (
                answer.status == 202
                and (begun := following(call, answer))
                and not self._sessions.spare(self._place(digest), begun)
            ):
                await self._end(digest, begun)
        return None

    async def leave(self, digest: Digest) -> None:
        """End the upload that a refused mount of the blob has opened and nobody took. Raises nothing.

        It has a second for that, also where the caller is cancelled.
        """
        if spare := self._sessions.take(self._place(digest)):
            with trio.CancelScope(deadline=trio.current_time() + LEAVING_SECONDS, shield=True):
                await self._end(digest, spare)

    async def upload(
        self, descriptor: Descriptor, read: Read, at: Callable[[int], object], failed: Told = nobody
    ) -> None:
        """On return the repository has the blob; see Upload. At most `limits.uploads` go to a host at a time."""
        digest = descriptor.digest
        template = replace(
            self._call("upload", digest), method="POST", url=self._where.uploads(self.repository), expects=JUDGED
        )
        blob = Sending(descriptor, read, at, failed)
        async with self._gates.uploads:
            await Upload(self._exchange, self._sessions, template, blob, partial(self.has_blob, digest)).run()
        await self.leave(digest)

    async def put_manifest(self, selector: str, descriptor: Descriptor, data: bytes) -> Digest | None:
        """Give the manifest or index the tag or digest `selector`; returns the subject that the registry has seen.

        Raises VerificationFailed where it finds another digest. Source: distribution-spec, "Pushing Manifests".
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
                # Somebody may have given the tag to another image meanwhile, after ours had come.
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
        """Enter a manifest into the index by which registries without a referrers API list what refers to `subject`.

        Returns whether it was not in there yet. Raises Malformed where the tag is something else. Two who do this at
        once from different machines may lose one entry, as the specification says.
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
        """The digest that the registry states for what is at `url` ("" if it states none); None if nothing is there."""
        call = replace(self._call("exists", what), method="HEAD", url=url, headers=headers)
        try:
            async with self._gates.questions:
                answer = await self._exchange.open(call, self._tries())
                await drain(answer)
        except (NotFound, RegistryFailed):
            # Who cannot tell (caches answer 500) is sent it, and says why not if that cannot be either.
            return None
        return answer.headers.get("docker-content-digest", "")

    async def _end(self, digest: Digest, url: str) -> None:
        """Ask that an upload be forgotten. What cannot do that forgets it by itself, some day."""
        call = replace(self._call("upload", digest), method="DELETE", url=url, expects=ENDED, access=ENDING)
        try:
            async with self._gates.questions:
                await drain(await self._exchange.open(call, self._tries()))
        except ImgfsError as error:
            _log.info("an upload stays open", extra={"host": self._where.host, "error": error.message})

    def _place(self, digest: Digest) -> Place:
        return Place(self._where.base, self.repository, digest)

    def _call(self, kind: str, what: str) -> Call:
        place = f"{self._where.host}/{self.repository}"
        subject = f"push of {what} to {place}" if is_digest(what) else f"push to {place}:{what}"
        return Call(kind, self._where, self.repository, "", subject, access=ACCESS)

    def _tries(self) -> Tries:
        return self._exchange.tries(self._where.host)
