"""A user's work through a real mount, ended by kill -9, power cuts and failing disks anywhere, and what must be left.

Workers (ingests, labels, names, leases, snapshots, pulls, garbage collection) keep a ledger outside the state
directory of what was acknowledged; afterwards each looks at what is there, and its ledger judges it.
"""
