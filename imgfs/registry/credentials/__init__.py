"""Logins that other tools saved: where they are, which login a registry gets, and the programs that store logins.

This package only reads, and only when a registry asks for a login. It does not contact registries. The exchange sends a
login to the registry for which it was found, and to the token endpoint that this registry names.
"""
