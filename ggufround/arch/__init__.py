"""Architectures: one family a file, as data."""
