"""Images on their way out: what a registry has not is sent there, blobs first, the name last.

How a registry is spoken to is registry/push/; what is here decides what it gets, and in which order.
"""
