"""Everything that is measured of the web, with one command: `python -m benchmarks.web`."""

from __future__ import annotations

import sys

from benchmarks import web_pages, web_slow


def main() -> None:
    """Pages per second, then how late a thousand slow fetches make the event loop; arguments are those of the former."""
    web_pages.main()
    sys.argv[1:] = []
    web_slow.main()


if __name__ == "__main__":
    main()
