"""An experiment on a branch, compared with main in one query, and taken over where it is better.

    python examples/experiment.py

    main: tea at 500, 12 sold, 6000 taken
    cheaper: tea at 450, 15 sold, 6750 taken
    better: it is the price on main from now on

The second time it begins with that price, and goes too far:

    main: tea at 450, 15 sold, 6750 taken
    cheaper: tea at 400, 16 sold, 6400 taken
    not better: main stays as it is

A branch is made by copies inside the bucket: no page of the database passes through this process.
It has a history and a writer of its own, so nobody who writes to main notices any of this.
"""

import apsw

import buckethead

SOLD = {500: 12, 450: 15, 400: 16}  # how many cups people buy at a price

COMPARE = """
    SELECT 'main', cents, cups, cents * cups FROM main.sale UNION ALL
    SELECT 'cheaper', cents, cups, cents * cups FROM trial.sale"""
IS_BETTER = "SELECT t.cents * t.cups > m.cents * m.cups FROM trial.sale t, main.sale m"


def sell_at(schema: str, cents: int) -> None:
    db.execute(f"DELETE FROM {schema}.sale")
    db.execute(f"INSERT INTO {schema}.sale VALUES (?, ?)", (cents, SOLD[cents]))


db = apsw.Connection("file:shop?vfs=buckethead")
db.execute("CREATE TABLE IF NOT EXISTS sale(cents INTEGER, cups INTEGER)")
if not db.execute("SELECT count(*) FROM sale").get:
    sell_at("main", 500)

db.execute("INSERT INTO bh_branches(name) VALUES ('cheaper')")  # begins as main is now
db.execute("ATTACH 'file:shop?vfs=buckethead&branch=cheaper' AS trial")
sell_at("trial", db.execute("SELECT cents - 50 FROM main.sale").get)

for row in db.execute(COMPARE):
    print("{}: tea at {}, {} sold, {} taken".format(*row))

if db.execute(IS_BETTER).get:
    with db:
        db.execute("DELETE FROM main.sale")
        db.execute("INSERT INTO main.sale SELECT * FROM trial.sale")
    print("better: it is the price on main from now on")
else:
    print("not better: main stays as it is")

# a branch that is open cannot be deleted, and after DETACH it is still mounted
db.execute("DETACH trial")
buckethead.unmount("shop", branch="cheaper")
db.execute("DELETE FROM bh_branches WHERE name = 'cheaper'")
