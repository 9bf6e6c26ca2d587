"""Speaking to registries (distribution-spec): the only package that imports httpx.

`client` is the door. Nothing here stores anything, knows content/ or decides what to fetch; a failure is one of the
RemoteError family, or says that the registry's answer is not what was promised.
"""
