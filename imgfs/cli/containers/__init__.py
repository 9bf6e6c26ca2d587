"""Containers: started, watched, entered, ended."""
