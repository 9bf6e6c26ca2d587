"""Logins that other tools wrote: where they lie, which one is a registry's, and the programs that keep them.

Read only, and only when a registry asks for a login. Nothing here speaks to a registry; what is found goes nowhere but
to the exchange, which sends it to the host it was looked up for and to the token endpoint that this host names.
"""
