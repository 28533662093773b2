"""`python -m worker`: serves one model, on one device or of a server behind it (`--upstream`)."""

import sys

from curfew.rpc.extras import needing


def main(argv: list[str]) -> int:
    """Runs the command that is meant. Only one of them needs torch."""
    if any(argument.partition("=")[0] == "--upstream" for argument in argv):
        with needing("worker"):
            from worker.upstream.command import main as serve_upstream
        return serve_upstream(argv)
    with needing("worker"):
        from worker.service.command import main as serve
    return serve(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
