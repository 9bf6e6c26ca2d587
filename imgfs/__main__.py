"""`python -m imgfs`."""

from imgfs.cli import main

main()
