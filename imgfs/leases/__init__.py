"""What garbage collection must keep: leases with an expiry, pins of running operations, and times of last use."""
