"""Users work through a real mount; kill -9, power cuts and disk errors interrupt them; the promises must hold.

Workers (ingests, labels, names, leases, snapshots, pulls, garbage collection) keep a ledger of acknowledged operations
outside the state directory. After each crash every worker looks at what is there, and its ledger judges it.
"""
