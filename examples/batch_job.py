"""A nightly job that loses no work and does none of it twice, wherever it is killed.

    python examples/batch_job.py

    orders 1 to 4: flushed
    orders 5 to 8: flushed
    orders 9 to 10: flushed
    10 orders in all, for 550

The second time, which is the next night, it goes on where it stopped:

    orders 11 to 14: flushed
    orders 15 to 18: flushed
    orders 19 to 20: flushed
    20 orders in all, for 2100

For cron: `15 3 * * * cd /srv/shop && python batch_job.py`. Where that of the night before still
runs, this one takes over, and the other's next flush raises FencedError: so it is counted once.
"""

from pathlib import Path

from buckethead import BucketConfig, BucketSQLite, SnapshotConfig

AT_ONCE = 4


def report(seconds: float, size: int) -> None:
    print("flushed")


def next_batch() -> bool:
    """Do what comes next, and note how far that is, in one transaction; whether there was any."""
    with bh.connection:  # BEGIN IMMEDIATE: what is read in here is true until COMMIT
        done = int(bh.kv.get("orders done", "0"))
        batch = orders.read_text().split()[done : done + AT_ONCE]
        if not batch:
            return False
        for number, amount in enumerate(map(int, batch), done + 1):
            bh.connection.execute("INSERT INTO paid VALUES (?, ?)", (number, amount))
        bh.kv.set("orders done", str(done + len(batch)))
    print(f"orders {done + 1} to {done + len(batch)}: ", end="")
    return True


orders = Path("orders.txt")  # the shop has had ten more since the last time
count = len(orders.read_text().split()) if orders.exists() else 0
with orders.open("a") as file:
    file.writelines(f"{10 * number}\n" for number in range(count + 1, count + 11))

directory = Path("buckethead-data").absolute().as_uri()
config = BucketConfig(bucket="shop", key="batch.db", endpoint_url=directory)
with BucketSQLite(config, SnapshotConfig(interval_seconds=3600), on_flush_complete=report) as bh:
    db = bh.connection
    db.execute("CREATE TABLE IF NOT EXISTS paid(number INTEGER PRIMARY KEY, amount INTEGER)")
    while next_batch():
        bh.force_flush()  # whatever happens now, the batch is done
    number, total = db.execute("SELECT count(*), sum(amount) FROM paid").get
    print(f"{number} orders in all, for {total}")
