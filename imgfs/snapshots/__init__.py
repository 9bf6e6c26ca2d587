"""Snapshots: the graph of committed layers by chain ID, and the merged views on them."""
