"""Pushes to one repository of a host (distribution-spec, "Push"): blobs, resumed uploads, manifests, referrers.

transfer/ decides what to push and in which order.
"""
