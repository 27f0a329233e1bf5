"""A job that must not lose work: flush after each batch, look at the cost of every flush."""

from buckethead import BucketConfig, BucketSQLite, SnapshotConfig

config = BucketConfig(bucket="jobs", key="batch.db", endpoint_url="file:///tmp/buckethead-jobs")


def report(seconds: float, size: int) -> None:
    print("flushed" if size else "nothing new")


with BucketSQLite(config, SnapshotConfig(interval_seconds=3600), on_flush_complete=report) as bh:
    db = bh.connection
    db.execute("CREATE TABLE IF NOT EXISTS done(batch INTEGER PRIMARY KEY, rows INTEGER)")
    first = db.execute("SELECT coalesce(max(batch), 0) + 1 FROM done").get
    for batch in range(first, first + 3):
        with db:  # BEGIN IMMEDIATE ... COMMIT
            db.execute("INSERT INTO done VALUES(?, ?)", (batch, batch * 100))
        bh.force_flush()  # the batch survives whatever happens now
    print("batches done:", db.execute("SELECT count(*) FROM done").get)
