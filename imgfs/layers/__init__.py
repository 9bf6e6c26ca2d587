"""Layers as tars: the header walk, whiteouts, compression, the stored tar with its index, and the merged tree."""
