"""Builds EROFS metadata images of a merged tree. The file data stays in the tars of the layers."""
