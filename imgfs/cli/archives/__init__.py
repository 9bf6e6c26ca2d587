"""Images out of archives and into them."""
