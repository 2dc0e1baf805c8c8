"""Command line: parse, build values, call, show."""
