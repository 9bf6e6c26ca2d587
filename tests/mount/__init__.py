"""The contract, through a real mount: names, content, images, snapshots, and what goes wrong with them."""
