"""The registry client against a registry with scripted faults."""
