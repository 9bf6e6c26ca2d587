"""EROFS metadata images: the kernel's view of a merged tree, whose file data stays in the layers' tars."""
