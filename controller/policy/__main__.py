"""`python -m controller.policy`: the workbench for policy files."""

import sys

from controller.policy.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
