"""A database that outlives its process: run this file twice and watch the count grow."""

import apsw

import buckethead

db = apsw.Connection("file:quickstart?vfs=buckethead")
db.execute("CREATE TABLE IF NOT EXISTS run(at TEXT DEFAULT CURRENT_TIMESTAMP)")
db.execute("INSERT INTO run DEFAULT VALUES")
print("runs so far:", db.execute("SELECT count(*) FROM run").get)

# The exit hook flushes as well; this shows what it costs
result = buckethead.mount("quickstart").flush()
print(f"{result.pages} changed pages, {result.bytes_written} bytes written")
