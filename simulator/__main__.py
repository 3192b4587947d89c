"""Run the simulator's command line."""

import os
import sys

from simulator.cli import main

try:
    status = main()
    sys.stdout.flush()
except BrokenPipeError:
    # The reader (`head`) has seen enough; what is still buffered has nowhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    status = 0
sys.exit(status)
