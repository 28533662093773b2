"""From the file's form to the policy: defaults, references, contradictions between values."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from controller.policy.document import Document, Path, PolicyError, Problem, show_path
from controller.policy.model import (
    BudgetRange,
    Grace,
    ModePolicy,
    Objectives,
    Otherwise,
    Policy,
    Quality,
    TenantPolicy,
)
from controller.policy.quality import QualityCurve
from controller.policy.schema import PolicyFile, Settings, TenantSection, did_you_mean
from controller.policy.units import format_duration

T = TypeVar("T")

DEFAULT_SHARE = 0.95
DEFAULT_MAX_TOKENS = 8192
"""What a tenant that says nothing may occupy of a worker with one request."""
DEFAULT_GRACE = Grace(share=0.1)
"""As in NVIDIA NIM, whose window in which it looks for the end of a sentence is a tenth of the budget."""


def resolve(file: PolicyFile, document: Document, name: str, text: str, environ: Mapping[str, str]) -> Policy:
    """The policy that a file of right form describes. Raises PolicyError."""
    return _Resolver(file, document, environ).policy(name, text)


class _Resolver:
    """One pass over the file; collects problems instead of stopping at the first."""

    def __init__(self, file: PolicyFile, document: Document, environ: Mapping[str, str]) -> None:
        self._file = file
        self._document = document
        self._environ = environ
        self._problems: list[Problem] = []
        self._curves: dict[str, QualityCurve] = {}

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
            if not digests:
                keyless.append(section.name)
            for where, digest in digests:
                if digest in keys:
                    self._problem(
                        where, f"the same key belongs to {keys[digest][1].rule} ({keys[digest][1].name})"
                    )
                keys[digest] = (digest, tenant)
        if self._problems:
            raise PolicyError(name, self._problems)
        version = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Policy(version, text, MappingProxyType(tenants), MappingProxyType(keys), tuple(keyless))

    def _problem(self, path: Path, message: str) -> None:
        self._problems.append(Problem(self._document.mark(path), f"{show_path(path)}: {message}"))

    def _conflict(self, tenant: Path, setting: Path, message: str) -> None:
        """Reports a setting that contradicts another, where it was decided: by the tenant or `defaults`."""
        own, common = (*tenant, *setting), ("defaults", *setting)
        if own not in self._document.marks and common in self._document.marks:
            self._problem(common, f"{message} (for {show_path(tenant)})")
        else:
            self._problem(own, message)

    def _tenant(self, section: TenantSection, path: Path) -> TenantPolicy:
        defaults = self._file.defaults
        mode = section.mode or defaults.mode or ModePolicy.AUTO
        objectives = self._objectives(section, defaults, path)
        budget = self._budget(section, defaults, mode, path)
        return TenantPolicy(
            name=section.name,
            rule=show_path(path),
            objectives=objectives,
            mode=mode,
            budget=budget,
            quality=self._quality(section, defaults, mode, budget, path),
            weight=_first(section.weight, defaults.weight, 1.0),
            otherwise=section.otherwise or defaults.otherwise or Otherwise.REFUSE,
        )

    def _objectives(self, section: Settings, defaults: Settings, path: Path) -> Objectives:
        own, common = section.objectives, defaults.objectives
        times = {
            "deadline": _either(own.deadline, common.deadline),
            "first_answer_token": _either(own.first_answer_token, common.first_answer_token),
            "first_token": _either(own.first_token, common.first_token),
        }
        named = [(name, seconds) for name, seconds in times.items() if seconds is not None]
        for (later, limit), (earlier, seconds) in itertools.pairwise(named):
            if seconds > limit:
                self._conflict(
                    path,
                    ("objectives", earlier),
                    f"{earlier} ({format_duration(seconds)}) is later than "
                    f"{later} ({format_duration(limit)})",
                )
        return Objectives(
            share=_first(own.share, common.share, DEFAULT_SHARE),
            deadline_s=times["deadline"],
            first_token_s=times["first_token"],
            first_answer_token_s=times["first_answer_token"],
            per_token_s=_either(own.per_token, common.per_token),
        )

    def _budget(self, section: Settings, defaults: Settings, mode: ModePolicy, path: Path) -> BudgetRange:
        own, common = section.budget, defaults.budget
        least = _first(own.min, common.min, 0)
        most = _first(own.max, common.max, max(DEFAULT_MAX_TOKENS, least))
        if least > most:
            self._conflict(path, ("budget", "min"), f"min ({least}) is above max ({most})")
        if mode is ModePolicy.THINK and most == 0:
            self._conflict(path, ("budget", "max"), "mode is think, but a budget of at most 0 allows none")
        if mode is ModePolicy.NO_THINK and least > 0:
            self._conflict(
                path,
                ("budget", "min"),
                f"mode is no_think, but a budget of at least {least} asks for it",
            )
        return BudgetRange(
            min_tokens=least,
            max_tokens=most,
            grace=_first(own.grace, common.grace, DEFAULT_GRACE),
            answer_tokens=_either(own.answer, common.answer),
        )

    def _quality(
        self, section: Settings, defaults: Settings, mode: ModePolicy, budget: BudgetRange, path: Path
    ) -> Quality:
        name = _either(section.quality.curve, defaults.quality.curve)
        floor = _first(section.quality.floor, defaults.quality.floor, 0.0)
        floor_path = ("quality", "floor")
        if name is None:
            if floor > 0:
                self._conflict(
                    path, floor_path, f"a floor ({floor:g}) needs a curve to measure it by; set quality.curve"
                )
            return Quality()
        if name not in self._file.curves:
            known = ", ".join(self._file.curves) or "none"
            near = did_you_mean(name, self._file.curves)
            self._conflict(
                path,
                ("quality", "curve"),
                f"{name!r} is not under curves (there: {known}){near}",
            )
            return Quality()
        curve = self._curves.get(name)
        if curve is None:  # its own problem was reported
            return Quality()
        most = 0 if mode is ModePolicy.NO_THINK else budget.max_tokens
        reached = curve.least_budget(floor)
        if reached is None:
            best = max(curve.qualities)
            self._conflict(
                path,
                floor_path,
                f"the floor ({floor:g}) is above all of curve {name!r}, whose best is {best:g}",
            )
        elif reached > most:
            why = "mode is no_think" if mode is ModePolicy.NO_THINK else f"budget.max is {most}"
            self._conflict(
                path, floor_path, f"the floor ({floor:g}) takes {reached} tokens on curve {name!r}, but {why}"
            )
        return Quality(curve, floor, reached or 0)

    def _digests(self, section: TenantSection, path: Path) -> list[tuple[Path, bytes]]:
        """Digests of the tenant's keys, with where each comes from."""
        if section.key is not None and section.keys is not None:
            self._problem((*path, "key"), "set either key or keys")
        if section.keys is not None:
            return [((*path, "keys", index), digest) for index, digest in enumerate(section.keys)]
        if section.key is None:
            # Three lines make a tenant: the variable's name then follows from its own.
            variable = "CURFEW_KEY_" + "".join(c if c.isalnum() else "_" for c in section.name).upper()
            where: Path = path
        else:
            variable, where = section.key.env, (*path, "key", "env")
        key = self._environ.get(variable, "")
        if not key:
            if section.key is not None:
                self._problem(where, f"environment variable {variable} is not set")
            return []
        return [(where, hashlib.sha256(key.encode()).digest())]


def _either(own: T | None, common: T | None) -> T | None:
    return common if own is None else own


def _first(own: T | None, common: T | None, built_in: T) -> T:
    chosen = _either(own, common)
    return built_in if chosen is None else chosen
