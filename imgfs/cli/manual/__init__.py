"""Commands that print documentation: manual pages, shell completion."""
