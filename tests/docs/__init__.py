"""The documents: made from the code, true of the tests, and without dead links."""
