"""Commands about users' snapshots: `imgfs snapshot`."""
