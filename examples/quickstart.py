"""A database that outlives its process: run this file twice, and watch the count grow.

    python examples/quickstart.py

    runs so far: 1
    published as TXID 1: 2 pages
    as of TXID 1: 1

The second time it goes on where it stopped; TXID 2 is its claim to be the writer now:

    runs so far: 2
    published as TXID 3: 2 pages
    as of TXID 1: 1

It is in ./buckethead-data, or in the bucket that the environment names. To look at it from a shell:
`buckethead --key quickstart.db log`, and `... sql "SELECT * FROM run"`.
"""

import apsw

import buckethead  # makes vfs=buckethead known to APSW

db = apsw.Connection("file:quickstart?vfs=buckethead")
db.execute("CREATE TABLE IF NOT EXISTS run(at TEXT DEFAULT CURRENT_TIMESTAMP)")
db.execute("INSERT INTO run DEFAULT VALUES")
print("runs so far:", db.execute("SELECT count(*) FROM run").get)

# Without this the exit hook would flush; so it is durable now, and we learn what that took.
result = buckethead.mount("quickstart").flush()
print(f"published as TXID {result.txid}: {result.pages} pages")

before = apsw.Connection("file:quickstart?vfs=buckethead&txid=1")  # the past, beside the present
print("as of TXID 1:", before.execute("SELECT count(*) FROM run").get)
