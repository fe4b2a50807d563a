"""Show how far a build is: reads Ninja's or make's output, writes one line over and over, or one line per tenth."""

from __future__ import annotations

import re
import sys


def percent(line: str) -> int | None:
    """Of `[12/340] ...` (Ninja) or `[  3%] ...` (make)."""
    if match := re.match(r"\[(\d+)/(\d+)\]", line):
        return 100 * int(match[1]) // int(match[2])
    match = re.match(r"\[ *(\d+)%\]", line)
    return int(match[1]) if match else None


def main() -> None:
    live = sys.stderr.isatty()
    shown = -1
    for line in sys.stdin:
        done = percent(line)
        if done is None or done == shown or not (live or done // 10 > shown // 10):
            continue
        shown = done
        sys.stderr.write(f"\r  {done:3}% built" if live else f"  {done:3}% built\n")
        sys.stderr.flush()
    if live:
        sys.stderr.write("\n")


if __name__ == "__main__":
    main()
