"""Tuned rounding: transformers' own modules, filled from a checkpoint one block at a time.

Free of torch, which every module below imports at its top: whoever is outside imports them inside functions.
"""
