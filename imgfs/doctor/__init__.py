"""What this host, its disk and its configuration let imgfs do, found out from outside and without changing anything.

`examination` runs all checks; `host`, `storage` and `registries` have them. Damage in a state directory is `check`'s.
"""
