"""The records of containers: configuration, status, the end of deleted ones, and their locks."""
