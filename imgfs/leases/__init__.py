"""Leases: what must not be collected although no name leads to it, and when things were used last."""
