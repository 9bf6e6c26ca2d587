"""Proof that the layers of an image are what its config says: inflated, hashed, compared."""

from __future__ import annotations

from imgfs.archives.contract import Store
from imgfs.archives.stream import PIECE
from imgfs.errors import Malformed, TooLarge, Unsupported, VerificationFailed
from imgfs.layers.compression import Compression, Compressions
from imgfs.layers.unpack import INFLATED_MAX
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.digest import Digest
from imgfs.oci.manifest import CONFIG_SIZE_MAX, Manifest, parse_config


class Prover:
    """Reads each layer once, however many images share it."""

    def __init__(self, store: Store, compressions: Compressions) -> None:
        self._store = store
        self._compressions = compressions
        self._known: dict[tuple[Digest, str, str], Digest] = {}

    def check(self, manifest: Manifest) -> None:
        """Raise VerificationFailed, Malformed or TooLarge unless every layer's tar is that of the config.

        What holds no tars (an attestation, an artifact) has nothing to prove.
        """
        compressions = [one for layer in manifest.layers if (one := self._compression(layer))]
        if len(compressions) < len(manifest.layers):
            return
        diff_ids = self._diff_ids(manifest.config)
        if len(diff_ids) != len(manifest.layers):
            raise Malformed(
                f"image config {manifest.config.digest}: has {len(diff_ids)} diff IDs for {len(manifest.layers)} layers"
            )
        for layer, compression, diff_id in zip(manifest.layers, compressions, diff_ids, strict=True):
            found = self._diff_id(layer, compression, diff_id)
            if found != diff_id:
                raise VerificationFailed(
                    f"layer {layer.digest}: its tar has digest {found}, the image config says {diff_id}"
                )

    def _compression(self, layer: Descriptor) -> Compression | None:
        """How a layer's tar is compressed; None for what is no tar, or none that can be inflated here."""
        try:
            return self._compressions.of(layer.media_type)
        except Unsupported:
            return None

    def _diff_ids(self, config: Descriptor) -> tuple[Digest, ...]:
        if config.size > CONFIG_SIZE_MAX:
            raise TooLarge(f"image config {config.digest}: has {config.size} bytes, the limit is {CONFIG_SIZE_MAX}")
        return parse_config(self._store.read(config.digest, 0, config.size)).diff_ids

    def _diff_id(self, layer: Descriptor, compression: Compression, said: Digest) -> Digest:
        if compression.word == "none" and layer.digest.algorithm == said.algorithm:
            return layer.digest
        key = layer.digest, compression.word, said.algorithm
        if key not in self._known:
            try:
                self._known[key] = self._inflate(layer, compression, said)
            except Malformed as error:
                raise Malformed(f"layer {layer.digest}: {error.message}") from None
        return self._known[key]

    def _inflate(self, layer: Descriptor, compression: Compression, said: Digest) -> Digest:
        decompressor, running = compression.open(), said.new_hash()
        offset, inflated = 0, 0
        while piece := self._store.read(layer.digest, offset, PIECE):
            offset += len(piece)
            for out in decompressor.feed(piece):
                running.update(out)
                inflated += len(out)
            if inflated > INFLATED_MAX:
                raise TooLarge(f"layer {layer.digest}: inflates to more than {INFLATED_MAX} bytes")
        decompressor.close()
        return Digest.from_hash(running)
