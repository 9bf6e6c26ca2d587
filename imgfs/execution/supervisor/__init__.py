"""The supervisor: a process beside each container and the parent of its program, so that the daemon may stop.

It is small, has no event loop, does not use FUSE, and lives exactly as long as its container.
"""
