"""Users' snapshots: `imgfs snapshot`."""
