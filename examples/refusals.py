"""What can go wrong, and what to do then: python -m examples.refusals ADDRESS KEY"""

import sys

from curfew import Client, CurfewError, InvalidRequest, Overloaded, Refused, Sampling, Unauthenticated


def attempt(address: str, key: str, temperature: float) -> str:
    """An answer, or what to tell the user instead. What can be tried again was, before these are raised."""
    try:
        with Client(address, key=key) as client:
            return client.ask("What is 12 + 37?", sampling=Sampling(temperature=temperature)).answer
    except InvalidRequest as error:
        return "; ".join(f"{each.field} {each.description}" for each in error.violations)
    except Unauthenticated as error:
        return f"check the key ({error.reason})"
    except Refused as error:
        return f"this deadline cannot be kept now: {error.message}"
    except Overloaded as error:
        return f"come back in {error.retry_after_s} s"
    except CurfewError as error:
        return str(error)


def main(address: str, key: str) -> None:
    """Prints a wrong request's outcome, a wrong key's, and a right one's."""
    print(attempt(address, key, temperature=9.0))
    print(attempt(address, "nobody's", temperature=0.0))
    print(attempt(address, key, temperature=0.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
