"""`python -m worker`: serves one model on one device."""

import sys

from worker.service.command import main

if __name__ == "__main__":
    sys.exit(main())
