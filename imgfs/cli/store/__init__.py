"""Commands about stored content: garbage collection, check and repair, labels."""
