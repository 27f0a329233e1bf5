"""What things cost, measured in one run on one machine: SQL against SQLite's own engines, and
flush, checkpoint and restore against what boto3 and SQLite do by themselves.

Measuring only: showing is left to the command line, and what is good enough to the tests.
"""

from .run import FULL, Options, Report, run

__all__ = ["FULL", "Options", "Report", "run"]
