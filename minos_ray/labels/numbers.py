"""Answers that are numbers (GSM8K): finding the number that a text gives as its answer, and comparing exactly."""

import re
from fractions import Fraction

CURRENCY = r"[$\u20ac\u00a3\u00a5]"
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A minus belongs to the number unless something stands right before it, as in 20-15.
NUMBER = re.compile(rf"(?P<minus>(?<![\w)\]}}%.])-)?(?:{CURRENCY}(?P<inner>-)?)?(?P<digits>{DIGITS})")
FRACTION = re.compile(r"\s*/\s*(?P<below>[0-9]+(?:\.[0-9]+)?)(?![0-9])")
MIXED = re.compile(r"\s+(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)(?![0-9])")

LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}")
THIN = re.compile(r"\\[!,;: ]|\{,\}")
PLAIN = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " "})

SAYS = re.compile(r"\banswer\s*(?:\*+\s*)?(?:is|are|:|=)(?![a-zA-Z_])[\s:=*]*", re.IGNORECASE)
HASHES = re.compile(r"####")
BOXED = re.compile(r"\\f?boxed\s*\{?")
LETTER = re.compile(r"^\s*\**A\s*:", re.MULTILINE)
SENTENCE = re.compile(r"\.(?:\s|$)")
MAX_DIGITS = 100


def extract_number(text: str, fallback: bool = True) -> str | None:
    """The canonical number that `text` gives as its answer, None without one.

    `The answer is: X`, `#### X` and `\\boxed{X}` count (the last one that holds a number), then a line `A: X`,
    then, if `fallback`, the last number of the text.
    """
    text = simplify(text)
    marks = sorted(m.end() for mark in (SAYS, HASHES, BOXED) for m in mark.finditer(text))
    letters = [m.end() for m in LETTER.finditer(text)]
    for start in [*reversed(marks), *reversed(letters)]:
        value = number_after(text, start)
        if value is not None:
            return canonical(value)
    value = last_number(text) if fallback else None
    return None if value is None else canonical(value)


def simplify(text: str) -> str:
    """LaTeX fractions, spaces and escapes, and typographic signs, in plain characters."""
    text = text if text.isascii() else text.translate(PLAIN)
    if "\\" in text or "{,}" in text:
        text = LATEX_FRACTION.sub(r"\1/\2", THIN.sub(lambda m: "," if m[0] == "{,}" else "", text))
    return text.replace("\\$", "$").replace("\\%", "%")


def number_after(text: str, start: int) -> Fraction | None:
    """The first number of the sentence at `start`, behind its last `=` if it has one."""
    line = text[start : start + 500].lstrip().partition("\n")[0]
    sentence = SENTENCE.split(line, maxsplit=1)[0]
    result = sentence.rpartition("=")[2]
    value = first_number(result)
    return first_number(sentence) if value is None else value


def first_number(text: str) -> Fraction | None:
    """The value of the first number in `text`: `-$1,000.50`, `3/4`, `1 1/2`."""
    found = NUMBER.search(text)
    return value_of(found, text) if found else None


def last_number(text: str) -> Fraction | None:
    """The value of the last number in `text`."""
    found = None
    end = 0
    while match := NUMBER.search(text, end):
        found = match
        fraction = MIXED.match(text, match.end()) or FRACTION.match(text, match.end())
        end = fraction.end() if fraction else match.end()
    return value_of(found, text) if found else None


def value_of(found: re.Match[str], text: str) -> Fraction | None:
    """The value of a number match together with the fraction that may follow it; None when it is absurdly long."""
    value = magnitude(found["digits"])
    mixed, fraction = MIXED.match(text, found.end()), FRACTION.match(text, found.end())
    if value is not None and mixed:
        part = quotient(magnitude(mixed["above"]), magnitude(mixed["below"]))
        value = value if part is None else value + part
    elif value is not None and fraction:
        whole = quotient(value, magnitude(fraction["below"]))
        value = value if whole is None else whole
    return -value if value is not None and (found["minus"] or found["inner"]) else value


def magnitude(digits: str) -> Fraction | None:
    """`1,000.50` as an exact value."""
    return Fraction(digits.replace(",", "")) if len(digits) <= MAX_DIGITS else None


def quotient(above: Fraction | None, below: Fraction | None) -> Fraction | None:
    """`above / below`, None when it has no value."""
    return above / below if above is not None and below else None


def canonical(value: Fraction) -> str:
    """One text for each value: `18` for 18.00, `0.5` for 1/2, `1/3` for what no decimal can say."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        places = max(places, power)
    if rest != 1 or places > MAX_DIGITS:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def same_number(gold: str, answer: str) -> bool:
    """Whether a gold answer and a canonical number have the same value."""
    expected = first_number(simplify(gold))
    return expected is not None and canonical(expected) == answer
