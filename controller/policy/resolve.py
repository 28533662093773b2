"""From the file's form to the policy: inheritance, references, contradictions between values."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import TypeVar

from controller.policy.document import Document, Path, PolicyError, Problem, show_path
from controller.policy.model import (
    Brownout,
    BudgetRange,
    Grace,
    Limits,
    ModePolicy,
    Objectives,
    Otherwise,
    Policy,
    Probe,
    Quality,
    Rule,
    TenantPolicy,
)
from controller.policy.quality import QualityCurve
from controller.policy.schema import PolicyFile, Settings, TenantSection, did_you_mean
from controller.policy.secrets import read_digests
from controller.policy.units import format_duration

T = TypeVar("T")

DEFAULT_SHARE = 0.95
DEFAULT_MAX_TOKENS = 8192
"""What a tenant that says nothing may occupy of a worker with one request."""
DEFAULT_GRACE = Grace(share=0.1)
"""As in NVIDIA NIM, whose window in which it looks for the end of a sentence is a tenth of the budget."""
DEFAULT_STABLE_ANSWERS = 2
DEFAULT_PROBE_ANSWER_TOKENS = 16
DEFAULT_PRIORITY = 3
"""In the middle, so that others can be put before and behind."""


def resolve(
    file: PolicyFile,
    document: Document,
    name: str,
    text: str,
    environ: Mapping[str, str] | None,
    secrets: FilePath | None,
) -> Policy:
    """The policy that a file of right form describes. Raises PolicyError.

    environ, secrets: where API keys are looked for; without the first, nowhere.
    """
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return _Resolver(file, document, version, environ, secrets).policy(name, text)


class _Layers:
    """Settings that hold for the same requests, each with its place, the most specific first."""

    def __init__(self, *layers: tuple[Settings, Path]) -> None:
        self._layers = layers
        self.paths = tuple(path for _, path in layers)

    @property
    def own(self) -> Path:
        """Where the most specific ones stand."""
        return self.paths[0]

    def under(self, settings: Settings, path: Path) -> _Layers:
        """With more specific ones."""
        return _Layers((settings, path), *self._layers)

    def get(self, read: Callable[[Settings], T | None], built_in: T) -> T:
        """The most specific value that is set."""
        found = self.find(read)
        return built_in if found is None else found

    def find(self, read: Callable[[Settings], T | None]) -> T | None:
        """The most specific value that is set, if any is."""
        for settings, _ in self._layers:
            value = read(settings)
            if value is not None:
                return value
        return None


class _Resolver:
    """One pass over the file; collects problems instead of stopping at the first."""

    def __init__(
        self,
        file: PolicyFile,
        document: Document,
        version: str,
        environ: Mapping[str, str] | None,
        secrets: FilePath | None,
    ) -> None:
        self._file = file
        self._document = document
        self._version = version
        self._environ = environ
        self._secrets = secrets
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._conflicts: set[tuple[Path, str]] = set()
        self._curves: dict[str, QualityCurve] = {}
        self._used: set[Path] = set()

    def policy(self, name: str, text: str) -> Policy:
        for curve, points in self._file.curves.items():
            try:
                self._curves[curve] = QualityCurve.through(points)
            except ValueError as error:
                self._problem(("curves", curve), str(error))
        if not self._file.tenants:
            self._problem(("tenants",), "there must be at least one tenant")

        tenants: dict[str, TenantPolicy] = {}
        keys: dict[bytes, tuple[bytes, TenantPolicy]] = {}
        keyless: list[str] = []
        for index, section in enumerate(self._file.tenants):
            path: Path = ("tenants", index)
            tenant = self._tenant(section, path)
            if section.name in tenants:
                first = tenants[section.name].rule
                self._problem((*path, "name"), f"{section.name!r} is already the name of {first}")
                continue
            tenants[section.name] = tenant
            digests = self._digests(section, path)
            if not digests and not self._has_unread_key(section):
                keyless.append(section.name)
            for where, digest in digests:
                if digest in keys:
                    self._problem(
                        where, f"the same key belongs to {keys[digest][1].rule} ({keys[digest][1].name})"
                    )
                keys[digest] = (digest, tenant)
        for kind, names in (("curves", self._file.curves), ("classes", self._file.classes)):
            for unused in names:
                if (kind, unused) not in self._used:
                    self._warn((kind, unused), "no tenant uses it")
        if self._problems:
            raise PolicyError(name, self._problems)
        return Policy(
            version=self._version,
            text=text,
            tenants=MappingProxyType(tenants),
            keys=MappingProxyType(keys),
            keyless=tuple(keyless),
            warnings=tuple(self._warnings),
        )

    def _problem(self, path: Path, message: str) -> None:
        self._problems.append(Problem(self._document.mark(path), f"{show_path(path)}: {message}"))

    def _warn(self, path: Path, message: str) -> None:
        self._warnings.append(Problem(self._document.key_mark(path), f"{show_path(path)}: {message}"))

    def _conflict(self, layers: _Layers, setting: Path, message: str) -> None:
        """Reports a setting that contradicts another: where it was decided, once for all that inherit it."""
        own = (*layers.own, *setting)
        decided = (place for path in layers.paths if (place := (*path, *setting)) in self._document.marks)
        where = next(decided, own)
        if (where, message) in self._conflicts:
            return
        self._conflicts.add((where, message))
        self._problem(where, message if where == own else f"{message} (for {show_path(layers.own)})")

    def _sets(self, path: Path) -> bool:
        return path in self._document.marks

    def _tenant(self, section: TenantSection, path: Path) -> TenantPolicy:
        layers = _Layers((self._file.defaults, ("defaults",)))
        if section.class_ is not None:
            shared = self._file.classes.get(section.class_)
            if shared is None:
                self._problem((*path, "class"), _unknown(section.class_, "classes", self._file.classes))
            else:
                self._used.add(("classes", section.class_))
                layers = layers.under(shared, ("classes", section.class_))
        layers = layers.under(section, path)
        rules: list[Rule] = []
        general = self._grant(section.name, layers)
        for index, exception in enumerate(section.rules):
            where = (*path, "rules", index)
            if not exception.match:
                self._problem(
                    (*where, "match"), f"matches every request; put what holds for all into {show_path(path)}"
                )
            if self._sets((*where, "limits")):
                self._problem(
                    (*where, "limits"), f"limits count all requests together; put them into {show_path(path)}"
                )
            grant = self._grant(section.name, layers.under(exception, where))
            rule = Rule(MappingProxyType(exception.match), grant)
            earlier = next((before for before in rules if before.covers(rule)), None)
            if earlier is not None and exception.match:
                self._warn(where, f"never applies; {earlier.policy.rule} matches the same requests first")
            rules.append(rule)
        return general.with_rules(rules)

    def _grant(self, name: str, layers: _Layers) -> TenantPolicy:
        """What holds for a tenant's requests in general, or under one of its rules."""
        mode = layers.get(lambda s: s.mode, ModePolicy.AUTO)
        budget = self._budget(layers, mode)
        return TenantPolicy(
            name=name,
            rule=show_path(layers.own),
            version=self._version,
            objectives=self._objectives(layers),
            mode=mode,
            budget=budget,
            quality=self._quality(layers, mode, budget),
            weight=layers.get(lambda s: s.weight, 1.0),
            priority=layers.get(lambda s: s.priority, DEFAULT_PRIORITY),
            otherwise=layers.get(lambda s: s.otherwise, Otherwise.REFUSE),
            brownout=layers.get(lambda s: s.brownout, Brownout.REJECT),
            probe=self._probe(layers, mode),
            hedge_s=layers.find(lambda s: s.hedge),
            limits=self._limits(layers),
        )

    def _probe(self, layers: _Layers, mode: ModePolicy) -> Probe | None:
        every = layers.get(lambda s: s.probe.every, 0)
        own = (*layers.own, "probe")
        if self._sets(own) and mode is ModePolicy.NO_THINK:
            self._warn(own, "has no effect, since mode is no_think")
        elif every == 0:
            for setting in ("first", "stable", "answer"):
                if self._sets((*own, setting)):
                    self._warn((*own, setting), "has no effect without probe.every")
        if every == 0:
            return None
        return Probe(
            first_tokens=layers.get(lambda s: s.probe.first, every),
            every_tokens=every,
            stable_answers=layers.get(lambda s: s.probe.stable, DEFAULT_STABLE_ANSWERS),
            answer_tokens=layers.get(lambda s: s.probe.answer, DEFAULT_PROBE_ANSWER_TOKENS),
        )

    def _limits(self, layers: _Layers) -> Limits:
        rate = layers.find(lambda s: s.limits.rate)
        burst = layers.find(lambda s: s.limits.burst)
        if burst is not None and rate is None:
            self._conflict(
                layers, ("limits", "burst"), "a burst needs a rate to be more than; set limits.rate"
            )
        return Limits(
            rate=rate,
            burst=burst if burst is not None else max(1, math.ceil(rate.per_s)) if rate else 1,
            tokens=layers.find(lambda s: s.limits.tokens),
            concurrency=layers.find(lambda s: s.limits.concurrency),
        )

    def _objectives(self, layers: _Layers) -> Objectives:
        times = {
            "deadline": layers.find(lambda s: s.objectives.deadline),
            "first_answer_token": layers.find(lambda s: s.objectives.first_answer_token),
            "first_token": layers.find(lambda s: s.objectives.first_token),
        }
        per_token_s = layers.find(lambda s: s.objectives.per_token)
        named = [(name, seconds) for name, seconds in times.items() if seconds is not None]
        for (later, limit), (earlier, seconds) in itertools.pairwise(named):
            if seconds > limit:
                self._conflict(
                    layers,
                    ("objectives", earlier),
                    f"{earlier} ({format_duration(seconds)}) is later than "
                    f"{later} ({format_duration(limit)})",
                )
        share_path = (*layers.own, "objectives", "share")
        if self._sets(share_path) and not named and per_token_s is None:
            self._warn(share_path, "has no effect, since no time is promised; set a deadline, or remove it")
        return Objectives(
            share=layers.get(lambda s: s.objectives.share, DEFAULT_SHARE),
            deadline_s=times["deadline"],
            first_token_s=times["first_token"],
            first_answer_token_s=times["first_answer_token"],
            per_token_s=per_token_s,
        )

    def _budget(self, layers: _Layers, mode: ModePolicy) -> BudgetRange:
        least = layers.get(lambda s: s.budget.min, 0)
        most = layers.get(lambda s: s.budget.max, max(DEFAULT_MAX_TOKENS, least))
        if least > most:
            self._conflict(layers, ("budget", "min"), f"min ({least}) is above max ({most})")
        if mode is ModePolicy.THINK and most == 0:
            self._conflict(layers, ("budget", "max"), "mode is think, but a budget of at most 0 allows none")
        if mode is ModePolicy.NO_THINK:
            if least > 0:
                self._conflict(
                    layers,
                    ("budget", "min"),
                    f"mode is no_think, but a budget of at least {least} asks for it",
                )
            for setting in ("max", "grace"):
                if self._sets((*layers.own, "budget", setting)):
                    self._warn((*layers.own, "budget", setting), "has no effect, since mode is no_think")
        return BudgetRange(
            min_tokens=least,
            max_tokens=most,
            grace=layers.get(lambda s: s.budget.grace, DEFAULT_GRACE),
            answer_tokens=layers.find(lambda s: s.budget.answer),
        )

    def _quality(self, layers: _Layers, mode: ModePolicy, budget: BudgetRange) -> Quality:
        name = layers.find(lambda s: s.quality.curve)
        floor = layers.get(lambda s: s.quality.floor, 0.0)
        learn = layers.get(lambda s: s.quality.learn, name is None)
        if mode is ModePolicy.NO_THINK and self._sets((*layers.own, "quality", "learn")):
            self._warn((*layers.own, "quality", "learn"), "has no effect, since mode is no_think")
        floor_path = ("quality", "floor")
        if name is None:
            if floor > 0:
                self._conflict(
                    layers,
                    floor_path,
                    f"a floor ({floor:g}) needs a curve to measure it by; set quality.curve",
                )
            return Quality(learn=learn)
        self._used.add(("curves", name))
        if name not in self._file.curves:
            self._conflict(layers, ("quality", "curve"), _unknown(name, "curves", self._file.curves))
            return Quality()
        curve = self._curves.get(name)
        if curve is None:  # its own problem was reported
            return Quality()
        most = 0 if mode is ModePolicy.NO_THINK else budget.max_tokens
        reached = curve.least_budget(floor)
        if reached is None:
            best = max(curve.qualities)
            self._conflict(
                layers,
                floor_path,
                f"the floor ({floor:g}) is above all of curve {name!r}, whose best is {best:g}",
            )
        elif reached > most:
            why = "mode is no_think" if mode is ModePolicy.NO_THINK else f"budget.max is {most}"
            self._conflict(
                layers,
                floor_path,
                f"the floor ({floor:g}) takes {reached} tokens on curve {name!r}, but {why}",
            )
        return Quality(curve, floor, reached or 0, learn)

    def _has_unread_key(self, section: TenantSection) -> bool:
        """Whether its key lies in an environment that was not given."""
        return self._environ is None and section.keys is None

    def _digests(self, section: TenantSection, path: Path) -> list[tuple[Path, bytes]]:
        """Digests of the tenant's keys, with where each comes from."""
        if section.key is not None and section.keys is not None:
            self._problem((*path, "key"), "set either key or keys")
        if section.key is not None and (section.key.env is None) == (section.key.file is None):
            self._problem((*path, "key"), "set either env or file")
            return []
        if section.keys is not None:
            return [((*path, "keys", index), digest) for index, digest in enumerate(section.keys)]
        if self._environ is None:
            return []
        if section.key is not None and section.key.file is not None:
            return self._from_file(section.key.file, (*path, "key", "file"))
        where: Path
        if section.key is not None and section.key.env is not None:
            variable, where = section.key.env, (*path, "key", "env")
        else:
            # Three lines make a tenant: the variable's name then follows from its own.
            variable, where = "CURFEW_KEY_" + re.sub("[^A-Z0-9]", "_", section.name.upper()), path
        key = self._environ.get(variable, "")
        if not key:
            if section.key is not None:
                self._problem(where, f"environment variable {variable} is not set")
            return []
        return [(where, hashlib.sha256(key.encode()).digest())]

    def _from_file(self, secret: str, where: Path) -> list[tuple[Path, bytes]]:
        if self._secrets is None:
            self._problem(where, "there is no secrets directory; give it with --secrets")
            return []
        try:
            return [(where, digest) for digest in read_digests(self._secrets, secret)]
        except ValueError as error:
            self._problem(where, str(error))
            return []


def _unknown(name: str, kind: str, known: Mapping[str, object]) -> str:
    """What to say of a reference to nothing."""
    return f"{name!r} is not under {kind} (there: {', '.join(known) or 'none'}){did_you_mean(name, known)}"
