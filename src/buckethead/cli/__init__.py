"""The command line ``buckethead``: click and rich over the library, one thin file a command group.

Commands decide nothing that the library could. Results go to stdout, everything else to stderr.
"""

from .app import main

__all__ = ["main"]
