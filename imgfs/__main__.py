"""`python -m imgfs`."""

from imgfs.entry import main

main()
