"""The benchmark of imgfs against its peers: images, a registry, a far link, contestants, experiments and their report.

Run it through `scripts/bench`. It imports nothing of imgfs: it drives the program from outside, as it drives the peers.
"""
