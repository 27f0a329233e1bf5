"""The database in memory: pages, pins and the SQLite VFS over them. Knows no bucket."""
