"""Authentication: challenges, logins, tokens, and how long tokens are cached."""
