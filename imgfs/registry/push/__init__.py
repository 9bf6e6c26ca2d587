"""Sending images to a registry (distribution-spec, "Push"): what is there, uploads that go on, manifests, referrers.

Owns one repository at one host at a time; what is sent there, and in which order, is transfer/'s business.
"""
