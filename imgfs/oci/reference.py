"""Image references: `host/repository:tag`, `host/repository@digest`, and the short forms that users type.

The grammar and limits are those of distribution-spec ("Pulling manifests") and of the reference grammar of containerd,
docker and podman.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

from imgfs.errors import Invalid
from imgfs.oci.digest import HEX_LENGTH, Digest, is_digest

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
NAME_MAX = 255
PORT_MAX = 65535

_REPOSITORY_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_REPOSITORY_PART}(?:/{_REPOSITORY_PART})*\Z")
_PART = re.compile(rf"{_REPOSITORY_PART}\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")
_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
    r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)(?::([0-9]{1,5}))?\Z"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an image at a registry. Exactly one of `tag` and `digest` is set."""

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}{self.suffix}"

    @property
    def suffix(self) -> str:
        """`:tag` or `@digest`."""
        return f":{self.tag}" if self.digest is None else f"@{self.digest}"

    @property
    def selector(self) -> str:
        """The part behind `/manifests/` in the registry's URL."""
        return str(self.tag if self.digest is None else self.digest)


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """A location of blobs and manifests: a repository at a registry."""

    host: str
    repository: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"


def is_host(component: str) -> bool:
    """Return whether the first component of a name is a registry's host: it has a dot or a port, or is `localhost`."""
    found = _HOST.match(component)
    if found is None or int(found[2] or 0) > PORT_MAX:
        return False
    if found[1]:
        return _is_ipv6(found[1])
    return component == "localhost" or "." in component or ":" in component


def _check_host(text: str, first: str) -> None:
    """Raise Invalid if `first` can only mean a host and is not one.

    Parsing it as something else would give an error that explains nothing.
    """
    if first.startswith("[") and not is_host(re.sub(r"\]:\d+\Z", "]", first)):
        raise Invalid(f"reference {text[:300]!r}: {first[:80]!r} is not an IPv6 address in brackets with a port")
    port = first.rpartition(":")[2]
    if ":" in first and port.isascii() and port.isdigit() and int(port[:6]) > PORT_MAX:
        raise Invalid(f"reference {text[:300]!r}: {port[:20]} is not a port; the highest is {PORT_MAX}")


def _is_ipv6(text: str) -> bool:
    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False


def is_repository_part(component: str) -> bool:
    """Return whether `component` may stand between the slashes of a repository name."""
    return len(component) <= NAME_MAX and _PART.match(component) is not None


def is_repository(text: str) -> bool:
    """Return whether `text` is a complete repository name."""
    return len(text) <= NAME_MAX and _REPOSITORY.match(text) is not None


def is_tag(text: str) -> bool:
    """Return whether `text` is a tag."""
    return _TAG.match(text) is not None


def parse_reference(text: str) -> Reference:
    """Parse the full form: host first, with a tag or a digest. Raises Invalid."""
    host, slash, rest = text.partition("/")
    if slash:
        _check_host(text, host)
    if not slash or not is_host(host):
        raise Invalid(f"reference {text[:300]!r}: expected host/repository:tag or host/repository@digest")
    repository, tag, digest = _split(text, rest)
    if digest is None and tag is None:
        raise Invalid(f"reference {text[:300]!r}: has no tag and no digest; add :tag or @digest")
    return Reference(host, repository, None if digest else tag, digest)


def expand_familiar(text: str) -> Reference:
    """Parse a short form (`alpine`, `user/app:1`, `quay.io/x/y`); docker.io, library/ and :latest are filled in."""
    first, slash, rest = text.partition("/")
    if slash:
        _check_host(text, first)
    if slash and is_host(first):
        host, path = first, rest
    else:
        host, path = DEFAULT_HOST, text
    if host == "index.docker.io":
        host = DEFAULT_HOST
    repository, tag, digest = _split(text, path)
    if host == DEFAULT_HOST and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host, repository, None if digest else tag or DEFAULT_TAG, digest)


def expand_repository(text: str) -> tuple[str, str]:
    """Return host and repository of a short form without a tag.

    The repository is "" if `text` is a host. Raises Invalid.
    """
    if is_host(text):
        return text, ""
    reference = expand_familiar(text)
    if reference.tag != DEFAULT_TAG or text.endswith(f":{DEFAULT_TAG}"):
        raise Invalid(f"repository {text[:300]!r}: has a tag or a digest; expected host/repository, or a host")
    return reference.host, reference.repository


def _split(text: str, path: str) -> tuple[str, str | None, Digest | None]:
    path, at, digest = path.partition("@")
    if at and not is_digest(digest):
        raise Invalid(f"reference {text[:300]!r}: malformed digest after @")
    repository, colon, tag = path.partition(":")
    if colon and not is_tag(tag):
        raise Invalid(f"reference {text[:300]!r}: malformed tag")
    if repository.rpartition("/")[2] in HEX_LENGTH:
        raise Invalid(f"reference {text[:300]!r}: a digest follows @, as in name@sha256:...")
    if len(repository) > NAME_MAX or not _REPOSITORY.match(repository):
        raise Invalid(f"reference {text[:300]!r}: malformed repository; lower case, digits and ._- only")
    return repository, tag if colon else None, Digest(digest) if at else None
