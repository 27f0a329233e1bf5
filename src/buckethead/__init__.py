"""A SQLite database that lives in memory and belongs to a bucket."""
