"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import first, vision, vision_more, vision_only

MODULES = (first, vision, vision_more, vision_only)
