"""The SQLite file of the state directory: one writer, readers that never wait for it, every commit durable.

Rooms own their tables. Each declares a SCHEMA of `CREATE ... IF NOT EXISTS` statements, and passes functions that take
a connection to `read` and `write`. A room declares the rows that no file can rebuild as KEPT, and rescue/ copies them.
A change of a released table is a step in migrations.py.
"""
