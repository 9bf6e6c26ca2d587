"""JSON web tokens that a real registry accepts, signed with a certificate from its configuration."""

from __future__ import annotations

import json
import time
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509 import load_pem_x509_certificate

ISSUER, SERVICE = "imgfs-test-issuer", "imgfs-test-service"
_HALF = 32


class Signer:
    """Issues tokens. `bundle` is the file of the authority that the registry trusts."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("issuer.test", key_type=trustme.KeyType.ECDSA)
        directory.mkdir(parents=True, exist_ok=True)
        self.bundle = directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.bundle))
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        certificate = load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        self._chain = [b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
        self.issued: list[str] = []

    def issue(self, scope: str, user: str) -> str:
        """Return a token for `scope`. Anonymous users get no access."""
        access = [_access(one) for one in scope.split()] if user else []
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": f"canary-{len(self.issued)}",
            "access": access,
        }
        header = {"typ": "JWT", "alg": "ES256", "x5c": self._chain}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        first, second = utils.decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        token = f"{signed}.{_encoded(first.to_bytes(_HALF, 'big') + second.to_bytes(_HALF, 'big'))}"
        self.issued.append(token)
        return token


def _access(scope: str) -> dict[str, object]:
    kind, name, actions = scope.split(":")
    return {"type": kind, "name": name, "actions": actions.split(",")}


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
