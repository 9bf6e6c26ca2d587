"""Concurrency that every room shares: single flights and the limiters of worker threads."""
