"""What the daemon brings to its plugins, and what the tree gets of them.

The objects themselves are made by plugins (`imgfs/<room>/plugin.py`), which are found by their entry points.
"""
