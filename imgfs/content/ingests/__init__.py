"""Unfinished writes: resumable, truncatable, and committed to blobs."""
