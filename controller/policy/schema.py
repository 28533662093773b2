"""The form of a policy file: its keys, and what each value may be by itself.

Everything may be left out except `apiVersion`, `tenants`, a tenant's `name` and a rule's `match`. What a rule
leaves out comes from its tenant, what that leaves out from its class, then from `defaults`, and what those
leave out from `controller.policy.resolve`. The docstrings of sections and keys are the reference that people
read, and the JSON schemas beside the parsers say to an editor what the parsers accept.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic_core import PydanticCustomError

from controller.policy.model import Brownout, Grace, ModePolicy, Otherwise
from controller.policy.secrets import DIGEST
from controller.policy.units import (
    COUNT,
    DURATION,
    MAX_COUNT,
    PERCENT,
    QUANTILE,
    RATE,
    Rate,
    parse_count,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_share,
    shown,
)

API_VERSION = "curfew/v1"
MAX_LABEL_LENGTH = 64
"""Of a label's name and of its value, in characters; the contract of GenerateRequest.labels has the same."""
MAX_PRIORITY = 7
"""The contract of WorkerService has priorities 0 to 7."""

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")
"""Keys of a Kubernetes Secret, but for those with a dot in front, which name its mechanism."""


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


def _parse_at_least_2(value: object) -> int:
    count = parse_count(value)
    if count < 2:
        raise ValueError(f"{shown(value)} is too few to be stable; write at least 2")
    return count


def _parse_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{shown(value)} is not a quality; write a number from 0 to 1, such as 0.9")
    return float(value)


def _parse_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def _parse_weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise ValueError(f"{shown(value)} is not a weight; write a number above 0, such as 2 or 0.5")
    return float(value)


def _parse_priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PRIORITY:
        allowed = f"a whole number from 0, which runs first, to {MAX_PRIORITY}"
        raise ValueError(f"{shown(value)} is not a priority; write {allowed}")
    return value


def _parse_label(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not text; labels are text, so write {_quoted(value)}")
    if not 1 <= len(value) <= MAX_LABEL_LENGTH:
        raise ValueError(f"{shown(value)} has {len(value)} characters; a label has 1 to {MAX_LABEL_LENGTH}")
    return value


def _quoted(value: object) -> str:
    return f"'{shown(value)}'" if isinstance(value, int | float) else "it in quotes"


def _parse_label_values(value: object) -> tuple[str, ...]:
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list matches nothing; write the values that match")
        return tuple(_parse_label(item) for item in value)
    return (_parse_label(value),)


def _parse_name(value: object) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(
            f"{shown(value)} is not a name; write up to 63 lower-case letters, digits, '.', '_' and '-', "
            "with a letter or digit at both ends"
        )
    return value


def _parse_digest(value: object) -> bytes:
    if not isinstance(value, str) or DIGEST.fullmatch(value) is None:
        # Not shown: somebody may have put the key itself here.
        raise ValueError(
            "not a key's digest; write sha256: and the 64 hexadecimal digits of the key's SHA-256"
        )
    return bytes.fromhex(value.removeprefix("sha256:"))


def _parse_variable(value: object) -> str:
    if not isinstance(value, str) or _VARIABLE.fullmatch(value) is None:
        raise ValueError(f"{shown(value)} is not the name of an environment variable, such as SUPPORT_KEY")
    return value


def _parse_secret(value: object) -> str:
    if not isinstance(value, str) or _SECRET.fullmatch(value) is None:
        raise ValueError(
            f"{shown(value)} is not the name of a file in the secrets directory, such as support-key"
        )
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


def _schema(title: str, *alternatives: dict[str, JsonValue], examples: Sequence[JsonValue]) -> WithJsonSchema:
    """What an editor is told of a value; `title` is what the reference calls it."""
    form: dict[str, JsonValue] = {"anyOf": list(alternatives)} if len(alternatives) > 1 else alternatives[0]
    return WithJsonSchema({"title": title, **form, "examples": list(examples)})


def _words(words: type[E]) -> WithJsonSchema:
    allowed: list[JsonValue] = [str(word.value) for word in words]
    return WithJsonSchema({"title": "word", "enum": allowed})


def _text(pattern: str) -> dict[str, JsonValue]:
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


_LABEL: dict[str, JsonValue] = {"type": "string", "minLength": 1, "maxLength": MAX_LABEL_LENGTH}
_WHOLE: dict[str, JsonValue] = {"type": "integer", "minimum": 0, "maximum": MAX_COUNT}
_POSITIVE: dict[str, JsonValue] = {**_WHOLE, "minimum": 1}
_SEVERAL: dict[str, JsonValue] = {**_WHOLE, "minimum": 2}
_COUNT_TEXT = _text(COUNT.pattern)
_FRACTION: dict[str, JsonValue] = {"type": "number", "minimum": 0, "maximum": 1}

Duration = Annotated[
    float,
    _read_with(parse_duration),
    _schema("duration", _text(DURATION.pattern), examples=["800ms", "10s", "1.5m"]),
]
Share = Annotated[
    float,
    _read_with(parse_share),
    _schema(
        "share",
        _text(QUANTILE.pattern),
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        examples=["p95", 0.95],
    ),
]
Count = Annotated[int, _read_with(parse_count), _schema("count", _WHOLE, _COUNT_TEXT, examples=[500, "2k"])]
AtLeast1 = Annotated[
    int, _read_with(_parse_at_least_1), _schema("count", _POSITIVE, _COUNT_TEXT, examples=[500, "2k"])
]
AtLeast2 = Annotated[
    int, _read_with(_parse_at_least_2), _schema("count", _SEVERAL, _COUNT_TEXT, examples=[500, "2k"])
]
RateLimit = Annotated[
    Rate, _read_with(parse_rate), _schema("rate", _text(RATE.pattern), examples=["50/s", "600/m", "2M/h"])
]
GraceTokens = Annotated[
    Grace,
    _read_with(_parse_grace),
    _schema("grace", _text(PERCENT.pattern), _WHOLE, _COUNT_TEXT, examples=["10%", 20]),
]
Fraction = Annotated[float, _read_with(_parse_fraction), _schema("quality", _FRACTION, examples=[0.9])]
Switch = Annotated[
    bool, _read_with(_parse_switch), _schema("switch", {"type": "boolean"}, examples=[True, False])
]
Weight = Annotated[
    float,
    _read_with(_parse_weight),
    _schema("weight", {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}, examples=[2, 0.5]),
]
Priority = Annotated[
    int,
    _read_with(_parse_priority),
    _schema("priority", {"type": "integer", "minimum": 0, "maximum": MAX_PRIORITY}, examples=[0, 3, 7]),
]
Name = Annotated[str, _read_with(_parse_name), _schema("name", _text(_NAME.pattern), examples=["support"])]
Digest = Annotated[
    bytes,
    _read_with(_parse_digest),
    _schema("digest", _text(DIGEST.pattern), examples=["sha256:" + "0123456789abcdef" * 4]),
]
Variable = Annotated[
    str, _read_with(_parse_variable), _schema("variable", _text(_VARIABLE.pattern), examples=["SUPPORT_KEY"])
]
Secret = Annotated[
    str, _read_with(_parse_secret), _schema("secret", _text(_SECRET.pattern), examples=["support-key"])
]
Version = Annotated[str, _read_with(_parse_version), WithJsonSchema({"title": "word", "enum": [API_VERSION]})]
Label = Annotated[str, _read_with(_parse_label), _schema("label", _LABEL, examples=["task"])]
LabelValues = Annotated[
    tuple[str, ...],
    _read_with(_parse_label_values),
    _schema(
        "label value",
        _LABEL,
        {"type": "array", "minItems": 1, "items": {**_LABEL}},
        examples=["triage", ["triage", "routing"]],
    ),
]
Point = Annotated[
    tuple[int, float],
    _read_with(_parse_point),
    _schema(
        "point",
        {
            "type": "array",
            "items": [{"anyOf": [_WHOLE, _COUNT_TEXT]}, _FRACTION],
            "minItems": 2,
            "maxItems": 2,
        },
        examples=[[64, 0.84]],
    ),
]
Mode = Annotated[ModePolicy, _read_with(_parse_word(ModePolicy)), _words(ModePolicy)]
BrownoutWord = Annotated[Brownout, _read_with(_parse_word(Brownout)), _words(Brownout)]
OtherwiseWord = Annotated[Otherwise, _read_with(_parse_word(Otherwise)), _words(Otherwise)]


class Section(BaseModel):
    """A mapping of the file. Unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


class ObjectivesSection(Section):
    """The times promised, from a request's receipt, and the share of requests that must keep them."""

    deadline: Duration | None = None
    """To the end of the answer. Default: none is promised."""
    share: Share | None = None
    """How many of the tenant's requests must keep every time. Default: p95."""
    first_token: Duration | None = None
    """To the first token, of reasoning or answer. Default: none is promised."""
    first_answer_token: Duration | None = None
    """To the first token of the answer. Default: none is promised."""
    per_token: Duration | None = None
    """Mean time between the tokens after the first. Default: none is promised."""


class BudgetSection(Section):
    """Tokens for reasoning and answer."""

    min: Count | None = None
    """Reasoning is not started with less. Default: 0."""
    max: Count | None = None
    """Most that reasoning is ever granted; 0 allows none. Default: 8192, or `min` where that is more."""
    grace: GraceTokens | None = None
    """Tokens past the budget in which reasoning may end its sentence: a share of the budget, or a number.
    Default: 10%."""
    answer: AtLeast1 | None = None
    """Kept back for the answer alone, at least 1. Default: learnt from the tenant's answers."""


class QualitySection(Section):
    """How good answers are at each budget, and how good they must be."""

    floor: Fraction | None = None
    """Least expected quality: no plan thinks less than reaches it while the promises in time can be kept.
    Needs a curve. Default: 0."""
    curve: Name | None = None
    """One of `curves`. Default: none; more thinking is then taken to be better."""
    learn: Switch | None = None
    """Whether outcomes that callers report (`ReportOutcome`) move the curve: few move it little, old ones
    fade. Default: true without a curve; false with one, so that what was measured holds and callers cannot
    gain tokens by what they report."""


class ProbeSection(Section):
    """Looks at what the answer would be while a request reasons, and ends the reasoning once that is stable.
    A look takes a free place beside the request, which is not delayed; its tokens count as the tenant's.
    """

    every: Count | None = None
    """Reasoning tokens from one look to the next; 0 takes none. Default: 0."""
    first: AtLeast1 | None = None
    """Reasoning tokens at the first look, at least 1. Default: as `every`."""
    stable: AtLeast2 | None = None
    """Equal answers in a row that end the reasoning, at least 2. Default: 2."""
    answer: AtLeast1 | None = None
    """Tokens of an answer that are compared, at least 1. Default: 16."""


class LimitsSection(Section):
    """What a tenant may use, however idle the pool is. What comes past a limit is refused at once, and told
    when to come again. All controllers that share a store count together. Not in rules: a tenant's requests
    count together.
    """

    rate: RateLimit | None = None
    """Requests in a time. Default: no limit."""
    burst: AtLeast1 | None = None
    """Requests that may come at once, at least 1. Needs a rate. Default: what comes in a second."""
    tokens: RateLimit | None = None
    """Tokens in a time, prompt and output; as many as come in that time may be used at once. A request counts
    with its prompt when it comes, and with its output once it has ended. Default: no limit."""
    concurrency: AtLeast1 | None = None
    """Requests that may wait or run at once, at least 1. Default: no limit."""


class Settings(Section):
    """What may be set for all in `defaults`, for several tenants in a class, for one, and for some of its
    requests in a rule. The most specific value wins, key by key.
    """

    objectives: ObjectivesSection = ObjectivesSection()
    """The promises in time."""
    mode: Mode | None = None
    """Whether requests reason: `auto` lets the plan decide, `think` always, `no_think` never.
    Default: auto."""
    budget: BudgetSection = BudgetSection()
    """What reasoning and answer may use."""
    quality: QualitySection = QualitySection()
    """The quality of answers."""
    weight: Weight | None = None
    """What this quality is worth beside that of others when tokens are short, above 0. Default: 1."""
    priority: Priority | None = None
    """Which requests a worker runs first: 0 before all others, 7 after them; at the same priority the one
    whose deadline is earliest. Default: 3."""
    otherwise: OtherwiseWord | None = None
    """When no plan keeps the promise: `refuse` the request, or take the `best_effort`. Default: refuse."""
    brownout: BrownoutWord | None = None
    """How far load may squeeze requests: `none` at all; to `less` thinking than an idle pool would give them;
    to `no_think`; to the `queue`, where they wait for a better moment; to `reject`. A tenant that asks for no
    more than its share of the pool, by weight, is not squeezed. Default: reject.
    """
    hedge: Duration | None = None
    """When no token of a request has come so long after it was sent to a worker, it goes to a second one too,
    if one has a free place that nobody waits for; the first to yield a token goes on. Default: never."""
    probe: ProbeSection = ProbeSection()
    """Ending reasoning once the answer is stable."""
    limits: LimitsSection = LimitsSection()
    """What it may use at most."""


class KeySection(Section):
    """Where the API key is found; one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    env: Variable | None = None
    """The environment variable of the controller that holds it."""
    file: Secret | None = None
    """The file in the controller's `--secrets` directory that holds it, read again with every reload: a key a
    line, itself or as `sha256:` and its digest. While keys are exchanged both may be in it."""


class RuleSection(Settings):
    """Other settings for requests with certain labels. The first rule of a tenant that matches a request
    applies to it, alone.
    """

    match: dict[Label, LabelValues]
    """Labels that a request must carry, each with the value or one of the values given. At least one."""


class TenantSection(Settings):
    """One tenant."""

    name: Name
    """Its name in plans, logs and metrics; no two are the same."""
    class_: Name | None = Field(default=None, alias="class")
    """The one of `classes` that it belongs to. Default: none."""
    key: KeySection | None = None
    """Its API key. Default: the variable `CURFEW_KEY_` and the name in upper case, `_` for what is neither
    letter nor digit."""
    keys: tuple[Digest, ...] | None = None
    """Its API keys, as SHA-256 digests (`printf %s KEY | sha256sum`); instead of `key`."""
    rules: tuple[RuleSection, ...] = ()
    """Exceptions for requests with certain labels, in order."""


class PolicyFile(Section):
    """What each tenant of a Curfew installation is promised and granted."""

    apiVersion: Version
    """The form of the file."""
    defaults: Settings = Settings()
    """What holds where nothing more specific is said."""
    classes: dict[Name, Settings] = {}
    """Settings that several tenants share, by name."""
    curves: dict[Name, tuple[Point, ...]] = {}
    """Measured quality of answers, by name: points of budget in tokens and quality from 0 to 1, budgets
    rising from 0, which is no_think. Linear between points, level after the last."""
    tenants: tuple[TenantSection, ...]
    """Who may call; at least one."""
