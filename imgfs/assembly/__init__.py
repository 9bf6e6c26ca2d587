"""The composition root: objects that the daemon gives to plugins, and the tree's subsystems made from plugins.

Plugins make the objects themselves (`imgfs/<room>/plugin.py`). Entry points name the plugins.
"""
