"""Getting things here: the only room that knows both the stores and the registry."""
