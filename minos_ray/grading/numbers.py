"""Answers that are numbers (GSM8K): finding the number that a text gives as its answer, and comparing exactly; and
Unicode's mathematical signs as LaTeX.
"""

import re
from fractions import Fraction
from functools import lru_cache
from unicodedata import normalize

from minos_ray.steps.split import own_solution

# Code points, each with its word in LaTeX: `\times`.
WORDS = """
00d7 times  00b7 cdot  22c5 cdot  00f7 div  00b1 pm  2213 mp  221e infty  2264 le  2265 ge  2a7d le  2a7e ge
2260 ne  2248 approx  2261 equiv  21d2 Rightarrow  27f9 Rightarrow  21d4 Leftrightarrow  2192 to  2234 therefore
222a cup  2229 cap  2208 in  2209 notin  2205 emptyset  2282 subset  2286 subseteq  2216 setminus  2220 angle
25b3 triangle  230a lfloor  230b rfloor  2308 lceil  2309 rceil  2211 sum  220f prod  222b int  2026 ldots
22ef cdots  03c0 pi  03b1 alpha  03b2 beta  03b3 gamma  03b4 delta  03b5 epsilon  03b8 theta  03bb lambda  03bc mu
03c1 rho  03c3 sigma  03c4 tau  03c6 phi  03d5 phi  03c9 omega  0394 Delta  03a3 Sigma  03a9 Omega
"""
# `1/2` for each sign of a fraction.
FRACTIONS = {
    sign: normalize("NFKC", sign).split("\u2044") for sign in map(chr, (0xBC, 0xBD, 0xBE, *range(0x2153, 0x215F)))
}
OTHERS = (
    dict.fromkeys("\u00b0\u00ba\u02da", "^\\circ")
    | {sign: f"\\mathbb{{{name}}}" for sign, name in zip("\u2115\u2124\u211a\u211d\u2102", "NZQRC", strict=True)}
    | dict(zip("\u2032\u2019\u2044\u2215\u2236\uff0c\uff1a\uff1d\uff08\uff09\u3002", "''//:,:=().", strict=True))
    | dict.fromkeys("\u2212\u2013\u2012\u2010\u2011\uff0d", "-")
    | dict.fromkeys("\u00a0\u2009\u202f\u2007\u200a\u2002\u2003\u3000", " ")
    | dict.fromkeys("\u200b\u2060\ufeff", "")
    | {"\uff5b": "\\{", "\uff5d": "\\}"}
)
WIDE = {chr(0xFF10 + digit): str(digit) for digit in range(10)} | {"\ufe63": "-", "\uff0d": "-", "\uff0e": "."}
"""Digits and signs as wide as a Chinese character."""
SIGNS = str.maketrans(
    {int(code, 16): f"\\{word} " for code, word in zip(WORDS.split()[::2], WORDS.split()[1::2], strict=True)}
    | {sign: f"\\frac{{{above}}}{{{below}}}" for sign, (above, below) in FRACTIONS.items()}
    | OTHERS
    | WIDE
)
RAISED, LOWERED = (
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f",
    "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089",
)
RAISED_RUN, LOWERED_RUN = re.compile(f"[{RAISED}]+"), re.compile(f"[{LOWERED}]+")
PLAIN_RAISED, PLAIN_LOWERED = str.maketrans(RAISED, "0123456789-n"), str.maketrans(LOWERED, "0123456789")
# `\sqrt{3}` for a root sign before 3, (3) or {3}.
ROOTS = {"\u221a": "", "\u221b": "[3]"}
ROOT = re.compile("([\u221a\u221b])\\s*(?:\\(([^()]*)\\)|\\{([^{}]*)\\}|([0-9]+(?:\\.[0-9]+)?|[a-zA-Z]))")
CURRENCY = r"[$\u20ac\u00a3\u00a5\u20b9]"
# 1,234,567.89  16,80,000 (Indian)  1.234,50 and 1.234.567 (European)  2,75 (money, alone)  1234.5  .5
DIGITS = (
    r"(?P<commas>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?![0-9]))"
    r"|(?P<dots>[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]{1,2}(?![0-9])|[0-9]{1,3}(?:\.[0-9]{3}){2,}(?![0-9])"
    r"|(?<![0-9,.(\[])[0-9]+,[0-9]{2}(?![0-9,)\]]))"
    r"|(?P<plain>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
# A minus belongs to the number unless something stands right before it, as in 20-15; digits between letters are a name.
NUMBER = re.compile(
    rf"(?P<minus>(?<![\w)\]}}%.])-)?(?:{CURRENCY}(?P<inner>-)?)?(?!(?<=[a-zA-Z])[0-9]+[a-zA-Z])(?:{DIGITS})"
)
POWER = re.compile(r"\s*[*x]\s*10\s*(?:\^|\*\*)\s*[({]?(?P<long>[-+]?[0-9]{1,3})|[eE](?P<short>[-+]?[0-9]{1,3})(?!\w)")
FRACTION = re.compile(r"\s*/\s*(?P<below>[0-9]+(?:\.[0-9]+)?)(?![0-9])")
MIXED = re.compile(r"\s+(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)(?![0-9])")
SPACED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?! ?[0-9/])")
PART = r"\s*(?:\{\s*(-?[0-9.,]+)\s*\}|([0-9]))"
LATEX_FRACTION = re.compile(rf"([0-9])?\\[cdt]?frac{PART}{PART}")
THIN = re.compile(r"\\[!,;: ] ?|\{,\}|~")
APOSTROPHE = re.compile(r"(?<=[0-9])'(?=[0-9]{3}(?![0-9]))")  # 1'000, as in Switzerland
NARROW = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
PLAIN = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u00d7": "*"}
    | {sign: f" {above}/{below}" for sign, (above, below) in FRACTIONS.items()}
    | WIDE
)
SAYS = re.compile(r"\b[aA](?:nswer|NSWER)\s*(?:\*+\s*)?(?:is|are|IS|ARE|:|=)(?![a-zA-Z_])[\s:=*]*")
TAGGED = re.compile(r"<answer>\s*(?=[^<\n]{1,200}</answer>)")
HASHES = re.compile(r"####")
BOXED = re.compile(r"\\f?boxed\s*\{?")
LETTER = re.compile(r"^[ \t]*\**A[ \t]*:", re.MULTILINE)
SENTENCE = re.compile(r"\.(?:\s|$)")
# 2\u221a3 has no exact value as a number; 3 is not what it says.
IRRATIONAL = re.compile("[0-9.,]*[ ]?[\u221a\u221b] ?\\(?[0-9.,]+\\)?(?! ?=)|[0-9.,]*\u03c0")
# Sentences of which the first number is not the answer: `not 12 but 15`, `4 times 6, which gives 24`, `that each of the
# 3 friends gets 5`.
CONTRAST = re.compile(r"\bnot\b[^0-9]*[0-9][0-9.,/]*[^0-9]*\bbut\b(?=[^0-9]*[0-9])")
OPERATION = re.compile(r"\s*[a-z]*\s*(?:times|plus|minus|multiplied by|divided by)\b")
RESULT = re.compile(r"\b(?:which|that|this)\s+(?:gives|makes|is|equals|comes to|leaves)\b|\b(?:giving|making)\b")
CLAUSE = re.compile(r"that\b")
ASIDE = re.compile(
    r"\b(?:of|in|to|for|from|per|among|by|with|every|each|all|than|at|on|after|before)\s+"
    r"(?:(?:the|his|her|their|its|these|those|other)\s+)*[$]?$"
)
MAX_DIGITS = 100
TRIES = 50  # marks of a text, from the last one on


def latex_signs(text: str) -> str:
    """`2\\sqrt{3}` for 2√3, `x^{2}` for x², `\\pi ` for π; what is ASCII comes back as it is."""
    if text.isascii():
        return text
    text = RAISED_RUN.sub(lambda m: f"^{{{m[0].translate(PLAIN_RAISED)}}}", text)
    text = LOWERED_RUN.sub(lambda m: f"_{{{m[0].translate(PLAIN_LOWERED)}}}", text)
    text = ROOT.sub(lambda m: f"\\sqrt{ROOTS[m[1]]}{{{m[2] or m[3] or m[4] or ''}}}", text)
    return text.translate(SIGNS)


def extract_number(text: str, fallback: bool = True) -> str | None:
    """The canonical number that `text` gives as its answer, None without one.

    `The answer is: X`, `#### X` and `\\boxed{X}` count (the last one that holds a number), then a line `A: X`,
    then, if `fallback`, the last number of the text. Thinking and a next question are no part of the text.
    """
    text = simplify(own_solution(text))
    for kinds in ((SAYS, HASHES, BOXED, TAGGED), (LETTER,)):
        marks = sorted([m.end() for mark in kinds for m in mark.finditer(text)])
        for start in reversed(marks[-TRIES:]):
            value = number_after(text, start)
            if value is not None:
                return canonical(value)
    value = last_number(text) if fallback else None
    return None if value is None else canonical(value)


@lru_cache(1 << 14)  # a problem has many candidates
def gold_number(gold: str) -> str | None:
    """The number that a gold cell holds: the marked one of a whole solution, else its first, None without one."""
    marked = extract_number(gold, fallback=False)
    if marked is not None:
        return marked
    value = number_after(simplify(gold), 0)
    return None if value is None else canonical(value)


def simplify(text: str) -> str:
    """LaTeX fractions, spaces and escapes, and typographic signs, in plain characters."""
    text = text if text.isascii() else NARROW.sub(",", IRRATIONAL.sub(" ", text)).translate(PLAIN)
    if "\\" in text or "{,}" in text:
        text = THIN.sub(lambda m: "," if m[0] == "{,}" else "", text)
        # `3/4` for \frac{3}{4}, and `1 3/4` when a digit stands before it.
        text = LATEX_FRACTION.sub(lambda m: f"{m[1] + ' ' if m[1] else ''}{m[2] or m[3]}/{m[4] or m[5]}", text)
        text = text.replace("\\times", "*").replace("\\cdot", "*")
    text = APOSTROPHE.sub(",", text)
    return text.replace("\\$", "$").replace("\\%", "%")


def number_after(text: str, start: int) -> Fraction | None:
    """The number that the sentence at `start` states, behind its last `=` if it has one."""
    line = text[start : start + 500].lstrip().partition("\n")[0]
    sentence = SPACED.sub(lambda m: m[0].replace(" ", ""), SENTENCE.split(line, maxsplit=1)[0])
    result = sentence.rpartition("=")[2]
    value = stated_number(result)
    return first_number(sentence) if value is None else value


def stated_number(text: str) -> Fraction | None:
    """The first number of a phrase, unless the phrase says that another is meant."""
    match = NUMBER.search(text)
    if match is None:
        return None
    value, end = value_of(match, text)
    contrast = CONTRAST.search(text)
    if contrast and contrast.start() < match.start():
        return first_number(text[contrast.end() :])
    if OPERATION.match(text, end):
        results = list(RESULT.finditer(text, end))
        result = first_number(text[results[-1].end() :]) if results else None
        return value if result is None else result
    if not CLAUSE.match(text):
        return value
    # The last number of a clause that is no aside (`of the 3 friends`), else the first.
    values, end = [], 0
    while match := NUMBER.search(text, end):
        value, end = value_of(match, text)
        values.append((value, ASIDE.search(text, max(0, match.start() - 40), match.start()) is None))
    return next((value for value, meant in reversed(values) if meant), values[0][0])


def first_number(text: str) -> Fraction | None:
    """The value of the first number in `text`: `-$1,000.50`, `3/4`, `1 1/2`, `2.5 x 10^3`."""
    match = NUMBER.search(text)
    return value_of(match, text)[0] if match else None


def last_number(text: str) -> Fraction | None:
    """The value of the last number in `text`."""
    spaced = SPACED.fullmatch(text.strip())
    if spaced:
        return magnitude(spaced[0].replace(" ", ""))
    value, end = None, 0
    while match := NUMBER.search(text, end):
        value, end = value_of(match, text)
    return value


def value_of(found: re.Match[str], text: str) -> tuple[Fraction | None, int]:
    """The value of a number with the power or the fraction that may follow it, and where it ends; None when it is
    absurdly long."""
    grouped = found["commas"] or found["plain"]
    # `1.234,5` in the notation with points; else commas only group.
    digits = found["dots"].replace(".", "").replace(",", ".") if found["dots"] else grouped.replace(",", "")
    value, end = magnitude(digits), found.end()
    power, mixed, fraction = (follows.match(text, end) for follows in (POWER, MIXED, FRACTION))
    if value is not None and power:
        value, end = value * Fraction(10) ** int(power["long"] or power["short"]), power.end()
    elif value is not None and mixed:
        above, below = magnitude(mixed["above"]), magnitude(mixed["below"])
        value, end = value + above / below if above is not None and below else value, mixed.end()
    elif value is not None and fraction:
        below = magnitude(fraction["below"])
        value, end = value / below if below else value, fraction.end()
    return -value if value is not None and (found["minus"] or found["inner"]) else value, end


def magnitude(digits: str) -> Fraction | None:
    """`1000.50` as an exact value."""
    return Fraction(digits) if len(digits) <= MAX_DIGITS else None


def canonical(value: Fraction) -> str:
    """One text for each value: `18` for 18.00, `0.5` for 1/2, `1/3` for what no decimal can say."""
    if value.denominator == 1:
        return str(value.numerator)
    denominator, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while denominator % prime == 0:
            denominator, power = denominator // prime, power + 1
        places = max(places, power)
    if denominator != 1 or places > MAX_DIGITS:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
