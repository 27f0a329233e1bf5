"""Files beside the database: their blobs in the bucket, their rows in SQL."""
