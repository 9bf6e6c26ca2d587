"""The FUSE tree: file names as bytes, inodes and errno.

Only this room imports pyfuse3. One module a kind of directory.
"""
