"""Registry client against a registry that misbehaves on demand."""
