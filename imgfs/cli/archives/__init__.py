"""Commands that import and export archives."""
