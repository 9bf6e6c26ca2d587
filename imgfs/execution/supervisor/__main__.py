"""`python -m imgfs.execution.supervisor JOB`."""

from __future__ import annotations

import sys

import msgspec

from imgfs.execution.job import Job
from imgfs.execution.supervisor.life import supervise

supervise(msgspec.json.decode(sys.argv[1], type=Job))
