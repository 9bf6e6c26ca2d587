"""What tells how commands are used: manual pages, completion."""
