"""Count the words of many files in a pool; a manager's Counter adds them up.

Usage: python 11_word_count.py FILE...
"""

import collections
import os
import re
import sys

import phalanx as mp


def count_words(path: str, total) -> int:
    with open(path, encoding="utf-8", errors="replace") as file:
        counts = collections.Counter(re.findall(r"[a-z]+", file.read().lower()))
    total.update(counts)  # one message to the manager's process, which merges
    return sum(counts.values())


def main(paths: list[str]) -> dict[str, int]:
    with mp.Manager() as manager, mp.Pool() as pool:
        total = manager.Counter()
        results = [pool.apply_async(count_words, (path, total)) for path in paths]
        words = sum(result.get() for result in results)
        print(f"{words} words, {len(total)} different ones, in {len(paths)} files")
        for word, count in total.most_common(10):
            print(f"{count:8} {word}")
        return dict(total.items())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("usage: 11_word_count.py FILE...", file=sys.stderr)
        sys.exit(1)
    mp.set_start_method(os.environ.get("PHALANX_EXAMPLE_START"))
    main(sys.argv[1:])
