"""Kinds of what the program itself brings (Given): plugins require them like any other."""

from __future__ import annotations

from imgfs.config import Config
from imgfs.database.database import Database
from imgfs.plugins.contract import Kind

CONFIG = Kind("config", Config)
"""The options of the daemon, which are not a plugin's own."""
DATABASE = Kind("database", Database)
"""The tables of the state directory; those of imgfs's rooms, as assembly/tables.py names them."""
