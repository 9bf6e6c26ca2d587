"""Shared concurrency: single flights, limiters, worker threads, pipelines."""
