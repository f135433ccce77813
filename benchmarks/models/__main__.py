"""Examines every class, each in a process of its own, and writes docs/models.md. A few minutes."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attnlens.benchmarks.models.examine import ATTENTION_LIMIT, LENS_LIMIT, N_NEW, PROMPT, Verdict, examine_bounded
from attnlens.benchmarks.models.table import page
from attnlens.benchmarks.models.tiny_configs import names

SECONDS = 120
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def examined(kind: str) -> Verdict:
    """The verdict on one class; trouble of its process is one, too."""
    context = multiprocessing.get_context("fork")  # torch and transformers are imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=examine_bounded, args=(kind, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(SECONDS):
            return Verdict(**json.loads(ours.recv()))
        wrong = f"not done after {SECONDS} s"
    except EOFError:
        process.join()
        wrong = f"its process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return Verdict(kind=kind, name=names()[kind], works=None, wrong=wrong)


def main(chosen: list[str]) -> int:
    """Examines `chosen` model types, or all of them and then writes the page; 1 if one is not as it should be."""
    started = time.monotonic()
    kinds = chosen or list(names())
    with ThreadPoolExecutor(int(os.environ.get("WORKERS", os.cpu_count() or 1))) as pool:
        verdicts = []
        for verdict in pool.map(examined, kinds):
            verdicts.append(verdict)
            say = "works" if verdict.works else "refused" if verdict.works is False else "not built"
            print(f"{verdict.kind}: {'WRONG: ' + verdict.wrong if verdict.wrong else say} {verdict.reason}", flush=True)
    wrong = [verdict for verdict in verdicts if verdict.wrong]
    print(f"{len(verdicts)} classes in {time.monotonic() - started:.0f} s, {len(wrong)} of them wrong")
    if not chosen and not wrong:
        limits = (ATTENTION_LIMIT, LENS_LIMIT)
        PAGE.write_text(page(verdicts, n_prompt=len(PROMPT) + 1, n_new=N_NEW, limits=limits), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
