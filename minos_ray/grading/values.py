"""The value of an answer as a text that is the same however the answer is written: runs in a `Comparer`'s child.

Nothing is compared: constants are evaluated, expressions with symbols are evaluated at fixed points (two that differ
agree there with no practical probability, Schwartz 1980), and everything else is made of its parts.
"""

import re
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from random import Random
from typing import Any

from latex2sympy2_extended import is_expr_of_only_symbols
from sympy import (
    E,
    Eq,
    Expr,
    FiniteSet,
    Float,
    I,
    Integer,
    Interval,
    MatrixBase,
    MatrixExpr,
    Rational,
    Set,
    Symbol,
    Tuple,
    UnevaluatedExpr,
    Union,
    expand,
    oo,
)
from sympy.concrete.expr_with_limits import ExprWithLimits
from sympy.core.function import AppliedUndef
from sympy.core.relational import GreaterThan, StrictGreaterThan
from sympy.logic.boolalg import Boolean, BooleanFunction
from sympy.sets.fancysets import Reals

from minos_ray.grading.forms import PERCENT, parsed, readable, value_side
from minos_ray.grading.numbers import canonical

# Two quantities with units, such as feet and inches, of which math-verify reads the first only.
UNIT = r"\\(?:text|mbox|mathrm)\s*\{(?!\s*(?:and|or)\b)[^{}]*[a-zA-Z]{2,}[^{}]*\}|(?!and\b)[a-zA-Z]{3,}\b"
SEVERAL = re.compile(rf"\d\s*(?:{UNIT})[^0-9^]*\d")
POINTS = 3
WORKING, PRECISE, SHOWN = 60, 40, 15  # digits: at the points, of a value, in a key
ZERO, NOTHING = Fraction(1, 10**35), Fraction(1, 10**50)  # e^{-100} is not 0
LARGEST_SNAPPED, LARGEST_DENOMINATOR = 10**15, 10**6
LONGEST_INTEGER = 4000  # digits; Python refuses to write longer ones
NAMED = {"i": I, "e": E}  # math-verify reads both as letters


def keys(*answers: str) -> list[str | None]:
    """The key of each answer, None for one without a value."""
    return [key(answer) for answer in answers]


def key(answer: str) -> str | None:
    """Equal for answers of equal value; None for what math-verify cannot read or sympy cannot evaluate.

    A percent sign changes nothing, as in the grader.
    """
    if SEVERAL.search(answer):
        return None
    text = readable(PERCENT.sub("", answer))
    forms = [text, value_side(text)] if "=" in text else [text]  # the grader reads k_{\\max} = 7 as 7, too
    keys = (key_of(read[0]) for form in forms if (read := parsed(form)))
    return next((key for key in keys if key is not None), None)


def key_of(value: Any) -> str | None:
    """The key of what math-verify returns; None for a text and for what has no value."""
    if isinstance(value, str):
        return None
    try:
        return form(value)
    except Exception:  # sympy raises anything on expressions it does not expect; the caller counts these answers
        return None


def exact_key(value: Any) -> str | None:
    """The key of a constant without decimals and sums, which has one exact value; None for anything else."""
    if not isinstance(value, Expr) or value.free_symbols or value.atoms(Float, UnevaluatedExpr, ExprWithLimits):
        return None
    return key_of(value)


def has_imaginary(value: Any) -> bool:
    """Whether an expression has the imaginary unit, which math-verify reads as a letter."""
    return isinstance(value, Expr) and any(symbol.name == "i" for symbol in value.free_symbols)


def form(value: Any) -> str:
    """The key of anything that math-verify returns."""
    if isinstance(value, MatrixExpr):
        value = value.doit()
    if isinstance(value, MatrixBase):
        return f"matrix{value.shape}" + listed("(", [form(part) for part in value.flat()])
    if isinstance(value, Tuple):
        return listed("(", [form(part) for part in value.args])
    if isinstance(value, Set):
        return set_form(value)
    if not isinstance(value, Expr):
        return statement(value)
    value = prepared(value)
    if not value.free_symbols:
        return number_form(value)
    # The values at the points; one value for what is constant in spite of its symbols.
    numbers = [number_form(at_point(value, number)) for number in range(POINTS)]
    return numbers[0] if len(set(numbers)) == 1 else "at" + listed("(", numbers)


def listed(opening: str, parts: list[str]) -> str:
    """Parts in brackets."""
    return opening + "; ".join(parts) + {"(": ")", "{": "}"}[opening]


def set_form(value: Set) -> str:
    """Sets have no order, one element is no set (`{5}` answers as `5`), and an open interval is an ordered pair too."""
    if isinstance(value, (Interval, Reals)):
        left, right = "(" if value.left_open else "[", ")" if value.right_open else "]"
        return f"{left}{form(value.start)}; {form(value.end)}{right}"
    if isinstance(value, FiniteSet):
        return elements(list(value.args))
    if isinstance(value, Union):
        return " u ".join(sorted(form(part) for part in value.args))
    done = value.doit()
    return str(value) if done == value else set_form(done)


def elements(values: list[Any]) -> str:
    """A list without order; values of different names, `x=1, y=2`, are the tuple in the order of the names."""
    equations: list[Any] = [value for value in values if isinstance(value, Eq)]
    names = {value.lhs.name: value.rhs for value in equations if isinstance(value.lhs, Symbol)}
    if len(names) == len(values) > 1:
        return listed("(", [form(names[name]) for name in sorted(names)])
    parts = sorted({form(value) for value in values})
    return parts[0] if len(parts) == 1 else listed("{", parts)


def statement(value: Boolean) -> str:
    """Equations by what they say of their unknown, inequalities of one unknown by its values, others up to a factor."""
    parts: list[Any] = list(getattr(value, "_unsorted_args", value.args))
    if isinstance(value, Eq):
        return equation(value.lhs, value.rhs)
    if isinstance(value, BooleanFunction) and all(isinstance(part, Eq) for part in parts):
        return equation(parts[0].lhs, parts[-1].rhs)
    if len(value.free_symbols) == 1:
        return form(value.as_set())
    if isinstance(value, BooleanFunction):
        return type(value).__name__ + listed("{", sorted(form(part) for part in parts))
    turned: Any = value.reversed if isinstance(value, (GreaterThan, StrictGreaterThan)) else value
    return f"{turned.rel_op} 0: " + proportions(turned.lhs - turned.rhs, turned.rel_op == "!=")


def equation(left: Any, right: Any) -> str:
    """`x = 5`, `2x = 10` and `5` are one answer, so are `y = 2x + 3`, `2x - y + 3 = 0` and `2x + 3`."""
    if isinstance(left, AppliedUndef) or not isinstance(right, Expr):
        return form(right)
    difference = expand(prepared(left) - prepared(right))
    names = {symbol.name: symbol for symbol in difference.free_symbols}
    unknown = names.get("y", difference.free_symbols.pop() if len(names) == 1 else None)
    slope = difference.diff(unknown) if unknown is not None else 0
    if slope != 0 and not slope.free_symbols:
        return form(-difference.xreplace({unknown: Integer(0)}) / slope)
    if is_expr_of_only_symbols(left) and not left.free_symbols & right.free_symbols:
        return form(right)
    return "= 0: " + proportions(difference, True)


def proportions(difference: Expr, signed: bool) -> str:
    """The values of an expression at the points, up to a common factor (which may be negative if `signed`)."""
    first, *others = [at_point(prepared(difference), number) for number in range(POINTS)]
    unit = first if signed else abs(first)
    return listed("(", [number_form(value / unit) for value in (first, *others)])


def prepared(value: Expr) -> Expr:
    """The expression evaluated as far as it is exact: decimals as written, `f(x)` as a name, i and e as numbers."""
    value = value.xreplace({call: Symbol(str(call)) for call in value.atoms(AppliedUndef)})
    value = value.xreplace({decimal: Rational(str(decimal)) for decimal in value.atoms(Float)})
    return value.xreplace({s: NAMED[str(s)] for s in value.free_symbols if str(s) in NAMED}).doit()


def at_point(value: Expr, number: int) -> Expr:
    """The value at a point; where each symbol stands depends on its name alone."""
    return value.xreplace({symbol: coordinate(str(symbol), number) for symbol in value.free_symbols}).evalf(PRECISE)


@cache
def coordinate(name: str, number: int) -> Float:
    """Between 0.5 and 2.5, from the second point on with either sign (|x| is not x)."""
    random = Random(f"{name} {number}")
    size = Float(Rational(random.randrange(5 * 10**WORKING, 25 * 10**WORKING), 10 ** (WORKING + 1)), WORKING)
    return size if number == 0 or random.random() < 0.5 else -size


def number_form(value: Expr) -> str:
    """Rational numbers exactly, others with 15 digits; ValueError for what is no number."""
    if value in (oo, -oo):
        return str(value)
    if isinstance(value, Rational):
        fraction = Fraction(value.p, value.q)
        if max(fraction.numerator.bit_length(), fraction.denominator.bit_length()) < 3 * LONGEST_INTEGER:
            return canonical(fraction)  # as the fast path writes numbers
        digits = f"{fraction.numerator:x}/{fraction.denominator:x}"
        return f"hash {blake2b(digits.encode(), digest_size=16).hexdigest()}"
    real, imaginary = value.evalf(PRECISE).as_real_imag()
    if not (real.is_Float or real.is_Rational) or not (imaginary.is_Float or imaginary.is_Rational):
        raise ValueError(f"{value} has no value")
    parts = [part_form(real), part_form(imaginary)]
    return parts[0] if parts[1] == "0" else " + i ".join(parts)


def part_form(value: Expr) -> str:
    """A real number; one that is as near to a fraction as its digits tell is that fraction: (1 + √2)(√2 - 1) is 1."""
    exact = Fraction(Rational(value).p, Rational(value).q)
    if abs(exact) < LARGEST_SNAPPED:
        near = exact.limit_denominator(LARGEST_DENOMINATOR)
        if abs(near - exact) < (ZERO if near else NOTHING):
            return canonical(near)
    return str(Float(value, SHOWN))
