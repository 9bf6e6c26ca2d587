"""What the database and what lies beside it are called in the state directory."""

from __future__ import annotations

FILE = "imgfs.db"
"""The database's name in the state directory."""
COPY = "imgfs.copy"
COPY_OLD = f"{COPY}.old"
"""Those of the copy that rescue/ keeps, and of the one before."""
ASIDE = f"{FILE}.damaged-"
"""How the names begin of databases that were set aside; the user removes them."""
