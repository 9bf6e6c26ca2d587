"""The daemon and what it serves: started, configured, looked at from outside."""
