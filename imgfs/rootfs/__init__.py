"""The rootfs as the kernel serves it: metadata images of chains, and what is mounted over snapshots/<id>/."""
