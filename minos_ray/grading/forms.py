"""How answers are written: in a form that math-verify reads as people do, and as a string in which the common ways are
equal."""

import re
from functools import lru_cache
from typing import Any

from minos_ray.grading.numbers import canonical, first_number
from minos_ray.grading.signs import latex_signs


@lru_cache(maxsize=4096)
def parsed(answer: str) -> list[Any]:
    """What math-verify reads in an expression; no limit of its own, since its signals fail outside a main thread."""
    from math_verify import LatexExtractionConfig, parse

    # LaTeX only: the reader of plain expressions ends in eval().
    return parse(
        f"\\boxed{{{answer}}}",
        [LatexExtractionConfig(boxed_match_priority=0)],
        parsing_timeout=None,  # ty: ignore[invalid-argument-type] its own docs allow None, its annotation does not
    )


# What surrounds an answer and is no part of it; a full stop behind it above all.
LEADING = re.compile(r"(?:\s|\$|\*\*|`|~|\\[,;:! ]|\\q?quad\b|\\displaystyle\b|:)+")
TRAILING = re.compile(r"(?:\s|\\?\$|\*\*|`|~|\\[,;:!]|\\q?quad\b|\\\\|\\text\{\s*[.,;]?\s*\}|(?<!\\)[.,;:]|\\(?=$))+$")
LONGEST = 2000  # characters of an answer
DISPLAYED = re.compile(r"\\\((?P<inline>.*)\\\)|\\\[(?P<block>.*)\\\]", re.DOTALL)

FONT = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox|hbox|boldsymbol|operatorname\*?)"
WRAPPER = re.compile(FONT + r"\s*\{([^{}]*)\}")
BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm|textbf)\s*\{\s*([0-9](?:[0-9 .]*[0-9])?|[a-zA-Z])\s*\}")
SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?|\\limits\b|\\(?:display|text)style\b")
SPACING = re.compile(r"(?<!\\)\\[!,;:> ]|\\q?quad\b|(?<!\\)~|\\thinspace\b|\\(?:phantom|hspace)\{[^{}]*\}")
DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))(?:\s*[CF]\b)?|\\degree\b|\\text\{\s*degrees?\s*\}")
ORDINAL = re.compile(r"(?<=[0-9])\s*\^\s*\{\s*\\(?:text|mathrm)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}$")
PERCENT = re.compile(r"\\?%|(?<=[0-9}\s])(?:percent(?:age)?|pct)\b")

SHORT_ABOVE = re.compile(r"\\frac\s*([0-9a-z])")
SHORT_BELOW = re.compile(r"(\\frac\{[^{}]*\})\s*([0-9a-z])")
SHORT_CHOICE = re.compile(r"\\binom\s*([0-9a-z])\s*([0-9a-z])")
CURRENCY = re.compile("(?:\\b(?:US|CA|AU|A|C))?\\\\\\$|\\\\(?:euro|pounds|yen)\\b|[\u00a2\u20ac\u00a3\u00a5\u20b9]")
SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-z])")
BARE_POWER = re.compile(r"\^\s*(\\(?:frac\s*\{[^{}]*\}\s*\{[^{}]*\}|sqrt\s*\{[^{}]*\})|-[0-9]+)")
CHOOSE = re.compile(r"\{\s*([^{}]*?)\\choose\b\s*([^{}]*?)\}")
# math-verify adds numbers that stand side by side (2(3) is 5 to it), as in 2 1/2.
FACTORS = re.compile(
    r"(?<![0-9a-zA-Z_^.\\])[0-9]+(?:\.[0-9]+)?\s*(?=\((?!\s*\\?(?:bmod|pmod|mod|text)\b)|\\binom)|\)\s*(?=[(0-9]|\\binom)"
    r"|\\binom\s*\{[^{}]*\}\s*\{[^{}]*\}\s*(?=\\binom|[0-9])"
)
MIXED = re.compile(r"(?<![0-9./_^\w])([0-9]+)\s+(?:([0-9]+)/([0-9]+)(?![0-9])|(?=\\frac))")  # 3 1/2
ADJACENT = re.compile(r"[0-9]\s+[0-9]")
REPEATING = re.compile(r"(?<![0-9])([0-9]{0,20})\.([0-9]{0,20})\\(?:overline|bar|dot)\s*\{?([0-9]{1,20})\}?(?![0-9])")
BLACKBOARD = re.compile(r"\\mathbb\s*([A-Z])")

JOINED = re.compile(r"(?<=[0-9])(?:\{,\}|\\[!,;:> ]\s*,?\s*(?:\\!)?|,\s*\\!\s*|~)(?=[0-9]{3}(?![0-9]))")
THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
SPACED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9]| [0-9])")
SUBSCRIPT = re.compile(r"_([0-9])\s+(?=[0-9])")  # \log_2 8
SCIENTIFIC = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})")
PLAIN_PI = re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])")
LEADING_DOT = re.compile(r"(?<![0-9])\.(?=[0-9])")
DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]+")
PLAIN_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?")

# The half of the day stays with its time: 3:30 p.m. is not 3:30 a.m.
HALF = re.compile(r"(?<=[0-9])(?:\s|~|\\[,;: ])*(?:\\(?:text|mbox|mathrm)\s*\{[\s~]*)?([aApP])\.?\s?[mM]\b\.?\s*\}?$")
SET_BUILDER = re.compile(
    r"\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\\colon|[|:])\s*([^|:]*(?:[<>]|\\[lg]e)[^|:]*)\\\}"
)
# Units behind a number: any words in \text{}, plain ones from a list or of four letters and more.
SPACE = r"(?:\s|~|\\[,;:! ])*"
UNIT = re.compile(
    rf"(?<=[0-9}})\]]){SPACE}(?:\\(?:text(?:rm|bf|it)?|mbox|mathrm)\s*\{{(?!\s*(?:and|or|if|for)\b)[\s~]*[a-zA-Z]"
    rf"[^{{}}()]*\}}{SPACE}(?:\^\s*\{{?\s*[0-9]\s*\}}?)?{SPACE}[/.]?{SPACE}|\\(?:mathrm|rm)\s+[a-z]+)+$"
)
WORD_UNIT = r"\{\s*\\(?:text|mathrm)\s*\{[a-zA-Z\s]+\}\s*\}"
UNIT_RATIO = re.compile(
    rf"(?<=[0-9}}])(?:\s|~|\\[,;: ])*\\frac\s*{WORD_UNIT}\s*{WORD_UNIT}$"
)  # 12\frac{\text{km}}{\text{h}}
SHORT_UNITS = "cm|mm|km|kg|mg|ml|mL|ft|lbs?|oz|mph|kph|min|sec|hrs?|yds?|gal|men|day|way|deg|rad|pts|sq|cu|am|pm|in"
NO_UNITS = (
    "and|or|if|for|when|where|mod|times|plus|minus|over|more|less|fewer|than|divided|percent|percentage|pct|sqrt|choose"
    "|factorial|million|billion|thousand|hundred|dozen|inf|infinity|base|except|squared|cubed|point|with|to|not|even|odd"
    "|sin|cos|tan|log|but"
)
PLAIN_UNIT = re.compile(
    rf"(?<=[0-9])\s*(?<!\^)\s+(?!(?:{NO_UNITS})\b)(?:(?:{SHORT_UNITS})\b|[a-zA-Z]{{4,}}\b)"
    rf"(?:[\s/.-]+(?!(?:{NO_UNITS})\b)[a-zA-Z]+)*\s*(?:\^\s*\{{?\s*[23]\s*\}}?)?$"
)
NOTE = re.compile(r"(?<=[0-9}])\s+\((?:\\text\s*\{)?[a-zA-Z]{2,}\b[a-zA-Z0-9\s,.'-]*\}?\)$")  # 1 (no reducing required)

CHOICE = re.compile(r"\(?([A-J])\)?")
CHOICES = re.compile(r"(?:[,;&/\s]|and\b|or\b)+\(?[A-J]\)?[.)]?")  # (B) and (C) is no choice with its text
OPTION = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+is)?[\s:]*)(?=\(?[A-J]\b)", re.IGNORECASE
)
CHOICE_WITH_TEXT = re.compile(r"\(([A-J])\)\s*(\S.*)|([A-J])\s*[:.)]\s*(\S.*)", re.DOTALL)


def bare(answer: str) -> str:
    """The answer without what surrounds it: spaces, dollar signs, brackets of mathematics, a full stop."""
    text, before = answer, None
    while text != before:
        before = text
        match = LEADING.match(text)
        text = TRAILING.sub("", text[match.end() :] if match else text)
        displayed = DISPLAYED.fullmatch(text)
        text = text if displayed is None else displayed["inline"] or displayed["block"] or ""
    return text


@lru_cache(maxsize=65_536)
def readable(answer: str) -> str:
    """The answer in LaTeX that math-verify reads as people do."""
    if len(answer) > LONGEST:
        return answer
    text = bare(latex_signs(answer))
    scientific = SCIENTIFIC.fullmatch(text)
    if scientific:
        return f"{scientific[1]}\\times 10^{{{int(scientific[2])}}}"
    if text.isalnum() and "pi" not in text:
        return text
    text = SIZES.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = text.replace("[\\begin{matrix}", "\\begin{bmatrix}").replace("\\end{matrix}]", "\\end{bmatrix}")
    text = BOLD.sub(lambda m: m[1].replace(" ", ""), text)
    text = HALF.sub(lambda m: f"{m[1].lower()}m", PLAIN_PI.sub(r"\\pi ", SUBSCRIPT.sub(r"_{\1}", text)))
    text = thousands_joined(CURRENCY.sub("", text))
    text = NOTE.sub(
        "", PLAIN_UNIT.sub("", UNIT.sub("", bare(UNIT_RATIO.sub("", ORDINAL.sub("", DEGREES.sub("", text))))))
    )
    text = SPACING.sub(" ", text).replace("{,}", ",")
    builder = SET_BUILDER.fullmatch(text)
    text = builder[2].strip() if builder else text  # \{x \mid x > 2\}
    text = (
        BLACKBOARD.sub(r"\\mathbb{\1}", text.replace("\\varnothing", "\\emptyset"))
        .replace("\\dbinom", "\\binom")
        .replace("\\tbinom", "\\binom")
    )
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", SHORT_BELOW.sub(r"\1{\2}", SHORT_ABOVE.sub(r"\\frac{\1}", text)))
    text = SHORT_CHOICE.sub(r"\\binom{\1}{\2}", text)
    text = CHOOSE.sub(r"\\binom{\1}{\2}", MIXED.sub(mixed_number, BARE_POWER.sub(r"^{\1}", text)))
    text = REPEATING.sub(repeating_decimal, LEADING_DOT.sub("0.", text))
    return bare(re.sub(r"\s+", " ", FACTORS.sub(r"\g<0>\\cdot ", text))) or answer.strip().strip("$")


def thousands_joined(text: str) -> str:
    """Numbers in groups of three digits as one; in brackets a comma separates (`(12,102)` is a pair)."""
    text = JOINED.sub("", text)
    if "(" not in text and "[" not in text and "\\{" not in text:
        text = THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    return SPACED.sub(lambda m: m[0].replace(" ", ""), text)


def mixed_number(found: re.Match[str]) -> str:
    """`3\\frac{1}{2}` for 3 1/2."""
    return found[1] + (f"\\frac{{{found[2]}}}{{{found[3]}}}" if found[2] else "")


def repeating_decimal(match: re.Match[str]) -> str:
    """`\\frac{1}{6}` for 0.1\\overline{6}, its numerator and denominator unreduced."""
    integer, fixed, period = match.groups()
    above = int(f"0{integer}{fixed}{period}") - int(f"0{integer}{fixed}")
    return f"\\frac{{{above}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


@lru_cache(maxsize=65_536)
def normal(answer: str) -> str:
    """A string form in which the common ways of writing one answer are equal."""
    if answer.isdecimal() and answer.isascii():
        return plain_number(answer)
    text = WRAPPER.sub(r"\1", PERCENT.sub("", readable(answer)))
    text = re.sub(r"\s+|(?<=[0-9])\\cdot (?=\()", "", bare(text) or text)
    choice = CHOICE.fullmatch(OPTION.sub("", text, count=1))
    return choice[1] if choice else plain_number(text)


def plain_number(text: str) -> str:
    """The canonical form of what is nothing but a number, anything else as it is."""
    if not PLAIN_NUMBER.fullmatch(text):
        return text
    value = first_number(text)
    return text if value is None else canonical(value)


def point(text: str) -> str:
    """`1.22` for the `1,22` of many languages: as a list it could not equal a decimal number anyway."""
    return text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else text


def choice_with_text(answer: str) -> tuple[str, str] | None:
    """The letter and the text of `(C) 14`, `C. 14` or `E: cooling the sample`; None for anything else."""
    match = CHOICE_WITH_TEXT.fullmatch(bare(WRAPPER.sub(r"\1", latex_signs(answer))))
    if match is None or CHOICES.fullmatch(words := match[2] or match[4]):
        return None
    return match[1] or match[3], words
