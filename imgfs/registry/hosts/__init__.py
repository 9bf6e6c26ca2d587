"""The hosts of a registry: addresses, hosts.toml, the order in which hosts are asked, and their health."""
