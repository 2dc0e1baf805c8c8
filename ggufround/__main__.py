"""python -m ggufround"""

from ggufround.cli import entry

entry()
