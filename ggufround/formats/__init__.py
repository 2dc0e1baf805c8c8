"""File formats: one sink a file."""
