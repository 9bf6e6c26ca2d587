"""The default mountpoint. It has its own module because commands need it before they load the other modules."""

DEFAULT_MOUNTPOINT = "/var/lib/imgfs"
VARIABLE = "IMGFS_MOUNTPOINT"
"""The environment variable that overrides the default."""
