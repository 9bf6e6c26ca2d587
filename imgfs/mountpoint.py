"""Where the tree is mounted unless somebody says otherwise. By itself, as it is asked for before all else is loaded."""

DEFAULT_MOUNTPOINT = "/var/lib/imgfs"
VARIABLE = "IMGFS_MOUNTPOINT"
"""What the environment says of it."""
