"""Two processes: one writes, the other follows, and sees each commit as soon as it is published.

    python examples/follower.py

    follower: 0 readings, 0 mm of rain
    follower: 1 readings, 2 mm of rain
    follower: 2 readings, 7 mm of rain
    follower: 3 readings, 8 mm of rain

The second time it begins with what there is:

    follower: 3 readings, 8 mm of rain
    follower: 4 readings, 10 mm of rain
    follower: 5 readings, 15 mm of rain
    follower: 6 readings, 16 mm of rain

To look for something new costs the follower one GET, and it never holds the writer up.
"""

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path

from buckethead import BucketConfig, BucketSQLite

directory = Path("buckethead-data").absolute().as_uri()
config = BucketConfig(bucket="weather", key="weather.db", endpoint_url=directory)

TOTAL = "SELECT count(*), coalesce(sum(mm), 0) FROM reading"


def follow(seen: Connection) -> None:
    """The other process: tell what is there now, and whenever that has changed."""
    with BucketSQLite(config, read_only=True, follow=0.05) as bh:
        known = None
        while True:
            total = bh.connection.execute(TOTAL).get
            if total != known:
                seen.send("{} readings, {} mm of rain".format(*total))
                known = total
            time.sleep(0.01)


def main() -> None:
    here, there = multiprocessing.Pipe(duplex=False)
    spawn = multiprocessing.get_context("spawn")
    with BucketSQLite(config) as bh:
        bh.connection.execute("CREATE TABLE IF NOT EXISTS reading(mm INTEGER)")
        bh.force_flush()
        spawn.Process(target=follow, args=(there,), daemon=True).start()
        there.close()  # so that recv() raises if the other process should fail
        print("follower:", here.recv())
        for mm in (2, 5, 1):
            bh.connection.execute("INSERT INTO reading VALUES (?)", (mm,))
            bh.force_flush()
            print("follower:", here.recv())


if __name__ == "__main__":
    main()
