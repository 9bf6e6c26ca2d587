"""`python -m imgfs`."""

from imgfs.forkserver import main

main()
