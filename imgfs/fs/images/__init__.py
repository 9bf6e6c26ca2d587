"""images/: names, images, and what of registries is reached through them."""
