"""One request at a time over httpx: connections, names, proxies, TLS, bodies. No policy beyond that."""
