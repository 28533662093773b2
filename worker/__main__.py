"""`python -m worker`: serves one model on one device."""

from worker.service.command import main

if __name__ == "__main__":
    main()
