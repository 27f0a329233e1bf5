"""A process that only watches the clock: its longest pause is what the machine does to anybody.

It is run as a program of its own and shares no interpreter lock with what is measured. It prints a
line when it is ready, and its longest pause in seconds when its input ends.
"""

import sys
import threading
import time


def main() -> None:
    """Spin until the input ends."""
    end = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        end.set()

    threading.Thread(target=wait, daemon=True).start()
    print("ready", flush=True)
    longest, previous = 0.0, time.perf_counter()
    while not end.is_set():
        now = time.perf_counter()
        longest, previous = max(longest, now - previous), now
    print(longest)


if __name__ == "__main__":
    main()
