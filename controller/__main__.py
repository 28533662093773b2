"""`python -m controller`: runs the SLO service."""

import sys

from curfew.rpc.extras import needing

if __name__ == "__main__":
    with needing("controller"):
        from controller.service.command import main
    sys.exit(main(sys.argv[1:]))
