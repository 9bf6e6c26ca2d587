"""What plugins of this room are."""

from __future__ import annotations

from imgfs.execution.options import Program
from imgfs.execution.records.records import Records
from imgfs.execution.runtimes.choice import obstacle
from imgfs.plugins.contract import Kind

EXECUTION = Kind("execution", Records)
"""Who keeps containers."""
RUNTIME = Kind("runtime", Program, obstacle)
"""OCI runtimes. The first by id that is installed, and does not refuse this host, gets the containers.

Containers are started beside the daemon, so what their starter has to know is exported: `program`.
"""
