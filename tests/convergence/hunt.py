"""A child of `make mutants`: rounds, small ones first, until two answers differ.

    python -m tests.convergence.hunt SECONDS SERVER TEMPLATE

Exit 1 and a line of JSON once a difference was found, 0 if none was until time was up.
"""

from __future__ import annotations

import json
import sys
import time

from tests.convergence.proving import prove
from tests.convergence.rounds import midnight

# More histories at once make lists meet more often, fewer are quicker.
SIZES = (1, 1, 2, 2, 4, 4, 8)


def main() -> int:
    """0: nothing found; 1: something was."""
    seconds, server, template = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    end, histories, number = time.time() + seconds, 0, 0
    while time.time() < end:
        size = SIZES[min(number, len(SIZES) - 1)]
        _, failures = prove((server, template), [number], midnight(), until=end, histories=size)
        histories += size
        if failures:
            print(json.dumps({"histories": histories, "found": failures[0].splitlines()[1].strip()}))
            return 1
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
