"""Check what this host, its disk and its configuration allow imgfs to do, from outside and without changing anything.

`examination` runs all checks; `host`, `storage` and `registries` implement them. The `check` command finds damage in a
state directory.
"""
