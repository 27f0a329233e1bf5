"""``python -m buckethead``: the command line."""

from .cli import main

main()
