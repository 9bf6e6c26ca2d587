"""The copy of the rows that no file can rebuild, and rebuilding a lost or damaged database from it and from files."""
