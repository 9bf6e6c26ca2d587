"""The benchmark of imgfs and its peers: images, a registry, a slow link, contestants, experiments and their report.

Run it through `scripts/bench`. It imports nothing from imgfs: it runs the program from outside, as it runs the peers.
"""
