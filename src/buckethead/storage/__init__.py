"""The database in a bucket: object stores, object keys and page images. Knows no SQL."""
