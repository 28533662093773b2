"""The form of a policy file: its keys, and what each value may be by itself.

Everything may be left out except `apiVersion`, `tenants` and a tenant's `name`. What a tenant leaves out
comes from `defaults`, and what those leave out from `controller.policy.resolve`.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from controller.policy.model import Grace, ModePolicy, Otherwise
from controller.policy.units import parse_count, parse_duration, parse_percent, parse_share, shown

API_VERSION = "curfew/v1"

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def did_you_mean(value: object, words: Iterable[str]) -> str:
    """`; did you mean WORD?`, or nothing when no word is near."""
    near = difflib.get_close_matches(str(value), list(words), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _read_with(parse: Callable[[object], T]) -> BeforeValidator:
    """Validates with a parser and reports its ValueError in its own words."""

    def validate(value: object) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise PydanticCustomError("curfew", "{reason}", {"reason": str(error)}) from None

    return BeforeValidator(validate)


def _parse_grace(value: object) -> Grace:
    share = parse_percent(value)
    if share is not None:
        return Grace(share=share)
    try:
        return Grace(fixed_tokens=parse_count(value))
    except ValueError:
        raise ValueError(
            f"{shown(value)} is not a grace; write a share of the budget such as 10%, or tokens such as 20"
        ) from None


def _parse_at_least_1(value: object) -> int:
    count = parse_count(value)
    if count < 1:
        raise ValueError(f"{shown(value)} is too few; write at least 1")
    return count


def _parse_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{shown(value)} is not a quality; write a number from 0 to 1, such as 0.9")
    return float(value)


def _parse_weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise ValueError(f"{shown(value)} is not a weight; write a number above 0, such as 2 or 0.5")
    return float(value)


def _parse_name(value: object) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(
            f"{shown(value)} is not a name; write up to 63 lower-case letters, digits, '.', '_' and '-', "
            "with a letter or digit at both ends"
        )
    return value


def _parse_digest(value: object) -> bytes:
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        # Not shown: somebody may have put the key itself here.
        raise ValueError(
            "not a key's digest; write sha256: and the 64 hexadecimal digits of the key's SHA-256"
        )
    return bytes.fromhex(value.removeprefix("sha256:"))


def _parse_variable(value: object) -> str:
    if not isinstance(value, str) or _VARIABLE.fullmatch(value) is None:
        raise ValueError(f"{shown(value)} is not the name of an environment variable, such as SUPPORT_KEY")
    return value


def _parse_version(value: object) -> str:
    if value != API_VERSION:
        raise ValueError(f"{shown(value)} is not known; write {API_VERSION}")
    return API_VERSION


def _parse_word(words: type[E]) -> Callable[[object], E]:
    allowed = [str(word.value) for word in words]

    def parse(value: object) -> E:
        if value not in allowed:
            near = did_you_mean(value, allowed)
            raise ValueError(f"{shown(value)} is not one of {', '.join(allowed)}{near}")
        return words(value)

    return parse


def _parse_point(value: object) -> tuple[int, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{shown(value)} is not a point; write [budget, quality], such as [64, 0.8]")
    return parse_count(value[0]), _parse_fraction(value[1])


Duration = Annotated[float, _read_with(parse_duration)]
Share = Annotated[float, _read_with(parse_share)]
Count = Annotated[int, _read_with(parse_count)]
AtLeast1 = Annotated[int, _read_with(_parse_at_least_1)]
Fraction = Annotated[float, _read_with(_parse_fraction)]
Weight = Annotated[float, _read_with(_parse_weight)]
Name = Annotated[str, _read_with(_parse_name)]
Point = Annotated[tuple[int, float], _read_with(_parse_point)]


class Section(BaseModel):
    """A mapping of the file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ObjectivesSection(Section):
    """The times promised, and the share of requests that must keep them."""

    deadline: Duration | None = None
    share: Share | None = None
    first_token: Duration | None = None
    first_answer_token: Duration | None = None
    per_token: Duration | None = None


class BudgetSection(Section):
    """Tokens for reasoning and answer."""

    min: Count | None = None
    max: Count | None = None
    grace: Annotated[Grace, _read_with(_parse_grace)] | None = None
    answer: AtLeast1 | None = None


class QualitySection(Section):
    """The curve of answer quality by budget, and the least quality."""

    floor: Fraction | None = None
    curve: Name | None = None


class Settings(Section):
    """What a tenant may set and `defaults` may set for all."""

    objectives: ObjectivesSection = ObjectivesSection()
    mode: Annotated[ModePolicy, _read_with(_parse_word(ModePolicy))] | None = None
    budget: BudgetSection = BudgetSection()
    quality: QualitySection = QualitySection()
    weight: Weight | None = None
    otherwise: Annotated[Otherwise, _read_with(_parse_word(Otherwise))] | None = None


class KeySection(Section):
    """Where an API key is found."""

    env: Annotated[str, _read_with(_parse_variable)]


class TenantSection(Settings):
    """One tenant."""

    name: Name
    key: KeySection | None = None
    keys: tuple[Annotated[bytes, _read_with(_parse_digest)], ...] | None = None


class PolicyFile(Section):
    """The whole file."""

    apiVersion: Annotated[str, _read_with(_parse_version)]
    defaults: Settings = Settings()
    curves: dict[Name, tuple[Point, ...]] = {}
    tenants: tuple[TenantSection, ...]
