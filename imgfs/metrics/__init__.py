"""Counters, gauges and histograms, and their text format. Each package defines its own metrics."""
