"""snapshots/: chains of images, what users made of them, and how both are shown."""
