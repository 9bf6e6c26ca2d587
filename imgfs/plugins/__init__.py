"""Plugins: what a plugin declares, and how plugins are found, ordered, started and reported. Contains no plugin."""
