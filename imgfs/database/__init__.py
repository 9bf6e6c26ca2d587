"""The SQLite file of the state directory: one writer, readers that never wait for it, every commit durable.

Rooms own their tables: each declares a SCHEMA of `CREATE ... IF NOT EXISTS` statements and hands functions over a
connection to `read` and `write`. What a table means, and what can be rebuilt from files, is said where it is declared:
what cannot be, a room declares as KEPT, and rescue/ keeps a copy of it.
"""
