"""Images as names: which name means which digest, and what is known of a digest before its bytes are here."""
