"""What is stored: collected, checked, mended, labelled."""
