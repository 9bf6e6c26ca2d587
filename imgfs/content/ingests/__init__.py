"""Unfinished writes ("ingests"): resumable, truncatable, committed to blobs."""
