"""Prints the median wall time of `lens --help`; the bound is 0.25 s on an idle machine, 1 s fails anywhere."""

import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


median = statistics.median(seconds([sys.argv[1], "--help"]) for _ in range(7))
print(f"lens --help: {median:.3f} s, median of 7")
sys.exit(median > 1.0)
