"""What a PromQL expression asks for."""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)


def metric_names(expression: str) -> set[str]:
    """The names that an expression reads, be it with variables of Grafana. Raises ValueError when it is not
    PromQL.
    """
    return set(_names(promql_parser.parse(expression.replace("$__rate_interval", "5m"))))


def _names(expression: Expr) -> Iterator[str]:
    match expression:
        case VectorSelector():
            assert expression.name is not None, f"{expression} names no metric"
            yield expression.name
        case MatrixSelector():
            yield from _names(expression.vector_selector)
        case AggregateExpr() | ParenExpr() | SubqueryExpr() | UnaryExpr():
            yield from _names(expression.expr)
        case BinaryExpr():
            yield from _names(expression.lhs)
            yield from _names(expression.rhs)
        case Call():
            for argument in expression.args:
                yield from _names(argument)
