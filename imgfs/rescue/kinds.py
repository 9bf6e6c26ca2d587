"""What plugins want of the program: which tables there are, and who keeps a copy of them."""

from __future__ import annotations

from imgfs.plugins.contract import Kind
from imgfs.rescue.keeper import Keeper
from imgfs.rescue.rebuild import Tables

TABLES = Kind("tables", Tables)
KEEPER = Kind("keeper", Keeper)
