"""content/: stored blobs, and unfinished writes in content/ingest/."""
