"""What imgfs asks of the kernel beyond files: the table of mounts, and mounting and unmounting. Blind to images."""
