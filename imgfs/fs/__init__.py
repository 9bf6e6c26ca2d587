"""The filesystem: the only room that knows pyfuse3, bytes names, inodes and errno. One file a kind of directory."""
