"""`python -m controller`: runs the SLO service."""

import sys

from controller.service.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
