"""Why a request is not taken."""


class RefusedError(Exception):
    """A request was not taken; nothing of it remains. The message holds the numbers, and so does `numbers`
    by name.
    """

    def __init__(self, message: str, **numbers: int) -> None:
        super().__init__(message)
        self.numbers = numbers


class TooLargeError(RefusedError):
    """It can never fit this engine."""


class QueueFullError(RefusedError):
    """Too many wait."""


class DuplicateError(RefusedError):
    """Its id is in use."""
