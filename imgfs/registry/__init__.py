"""The registry client (distribution-spec). No other package imports httpx or httpcore.

Other packages use `client`. This package stores no content, does not know content/ and does not decide what to fetch.
A failure is a RemoteError, or an error which says that the registry's answer is not what was promised.
"""
