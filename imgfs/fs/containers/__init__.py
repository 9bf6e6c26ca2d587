"""containers/: processes on snapshots, and what stays of them."""
