"""python -m ggufround"""

from ggufround.cli import main

main()
