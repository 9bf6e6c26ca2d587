"""The process beside each container: the parent of what runs in it, so that the daemon need not be.

It is small, knows no event loop and nothing of FUSE, and lives exactly as long as its container.
"""
