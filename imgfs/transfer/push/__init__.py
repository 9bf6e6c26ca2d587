"""Pushes images: sends the parts that a registry lacks, blobs first, the name last.

This package decides what is sent and in which order. registry/push/ implements the protocol.
"""
