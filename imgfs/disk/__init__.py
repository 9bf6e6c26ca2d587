"""The disk of the state directory: the calls that change it, and the order in which they make things durable."""
