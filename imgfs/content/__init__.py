"""Content-addressed blobs on disk: stored only when verified, durable when acknowledged. Blind to registries."""
