"""Kinds of objects that the program itself provides (Given). Plugins require them like any other kind."""

from __future__ import annotations

from imgfs.config import Config
from imgfs.database.database import Database
from imgfs.plugins.contract import Kind

CONFIG = Kind("config", Config)
"""The options of the daemon. A plugin's own options are not part of it."""
DATABASE = Kind("database", Database)
"""The database of the state directory, with the tables that assembly/tables.py lists."""
