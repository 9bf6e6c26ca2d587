"""Names and images: getting, listing, telling and giving them."""
