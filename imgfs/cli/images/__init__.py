"""Commands about names and images."""
