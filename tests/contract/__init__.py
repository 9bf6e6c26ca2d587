"""The contracts of a content store and a snapshotter, tested through the library and through a mount."""
