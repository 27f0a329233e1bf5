"""An archive: files in the bucket, and their rows joined with a table of one's own.

    python examples/file_archive.py

    letter-1.txt of Ben, 60020 bytes
    letter-2.txt of Ann, 60020 bytes
    how the last one ends: Yours, Ann
    blobs without a row: 1, to delete now: 0

The second time the archive has grown:

    letter-1.txt of Ben, 60020 bytes
    letter-2.txt of Ann, 60020 bytes
    letter-3.txt of Ben, 60020 bytes
    letter-4.txt of Ann, 60020 bytes
    how the last one ends: Yours, Ann
    blobs without a row: 1, to delete now: 0

The blob without a row is of a transaction that was rolled back. It stays for five minutes, because
it might be a file that another process has put and not published yet. The same from a shell, in the
same folder: `buckethead --key archive.db files list`, and `... files gc --dry-run`.
"""

from pathlib import Path

from buckethead import BucketConfig, BucketSQLite

LIST = """SELECT filename, writer, size FROM letter JOIN bh_files USING (bh_key)
    ORDER BY letter.rowid"""


def archive(writer: str) -> str:
    """Store a letter and who wrote it, in one transaction; its key."""
    with bh.connection as db:
        number = db.execute("SELECT count(*) + 1 FROM letter").get
        text = f"Letter {number}\n" + "bla " * 15_000 + f"\nYours, {writer}"
        key = bh.files.put(text.encode(), filename=f"letter-{number}.txt", mime="text/plain")
        db.execute("INSERT INTO letter VALUES (?, ?)", (key, writer))
    return key


directory = Path("buckethead-data").absolute().as_uri()
with BucketSQLite(BucketConfig(bucket="office", key="archive.db", endpoint_url=directory)) as bh:
    db = bh.connection
    db.execute("CREATE TABLE IF NOT EXISTS letter(bh_key TEXT PRIMARY KEY, writer TEXT)")
    for writer in ("Ben", "Ann"):
        newest = archive(writer)

    for filename, writer, size in db.execute(LIST):  # no content moves
        print(f"{filename} of {writer}, {size} bytes")

    with bh.files.open(newest) as letter:  # only what is read is downloaded
        letter.seek(-10, 2)
        print("how the last one ends:", letter.read().decode())

    db.execute("BEGIN")
    bh.files.put(b"on second thoughts, no")
    db.rollback()
    report = bh.files.gc(dry_run=True)
    print(f"blobs without a row: {report.orphans_found}, to delete now: {report.orphans_deleted}")
