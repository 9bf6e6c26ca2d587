"""Checking a state directory from outside: what is damaged, what that means, and what to do about it."""
