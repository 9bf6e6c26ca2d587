"""HTTP over httpx and httpcore: requests, answers, connections, TLS, proxies, name resolution."""
