"""content/: stored blobs, and unfinished writes below content/ingest/."""
