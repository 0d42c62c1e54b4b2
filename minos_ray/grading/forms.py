"""How answers are written: in a form that math-verify reads as people do, as a string in which the common ways are
equal, and in parts: elements of a list, sides of an equation, what a sentence ends in.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from minos_ray.grading.numbers import canonical, first_number, latex_signs

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
OPENING, CLOSING = "([{", ")]}"
BRACKETS = re.compile(r"\\[{}]|\\[lr](?:brace|brack|angle|floor|ceil|vert)\b|[()\[\]{}]")
OPENS = re.compile(r"[(\[{]|\\\{|\\l(?:brace|brack|angle|floor|ceil)\b")
SEPARATOR = re.compile(
    r"[,;]\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?:and|or)\b)?|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\(?:lor|land)\b"
)
EQUALS = re.compile(r"(?<![<>!:\\=])=(?!=)")
EQUALS_OR_IN = re.compile(r"(?<![<>!:\\=])=(?!=)|\\in(?![a-zA-Z])")
RELATION = re.compile(
    r"[<>]|\\(?:le|leq|ge|geq|ne|neq|lt|gt|leqslant|geqslant|in|equiv|approx|mid|subset|subseteq)(?![a-zA-Z])"
)
NAME = re.compile(
    r"\\?[a-zA-Z]+'*(?:_(?:\{[^{}]*\}|\\?[a-zA-Z0-9]+))?'*(?:\s*\([^()=]*\)|\s*\[[^\[\]=]*\])?"
    r"|\\math(?:bb|cal|rm|bf)\s*\{?\s*[A-Z]\s*\}?(?:_\{?\w\}?)?\s*(?:\\?[(\[{][^=]*[)\]}])?"
    r"|\((?:\s*[a-zA-Z](?:_\{?\w+\}?)?\s*,?)+\)|\|[^|=]{1,20}\||\\(?:angle|triangle|overline|widehat)\s*\{?[\sA-Z_{}0-9]+\}?"
    r"|(?:\\text\s*\{[^{}]*\}|\s)*"
)
LETTER = re.compile(r"[a-zA-Z]")
ALIGNED = re.compile(
    r"\\(?:begin|end)\s*\{(?:aligned|align|gathered|gather|split|array|equation|multline)\*?\}(?:\s*\{[lcr|]*\})?"
)
IMPLIES = re.compile(
    r"\\(?:Rightarrow|Longrightarrow|implies|Leftrightarrow|Longleftrightarrow|iff|therefore)(?![a-zA-Z])"
)
SENTENCE_END = re.compile(r"(?<!i\.e)(?<!e\.g)[.](?=\s|\\ |$)|\\\\(?:\s*\[[^\]]*\])?|\n\s*\n|;")
TEXTS = re.compile(FONT + r"\s*\{([^{}]*)\}")
PROSE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}\s+[a-zA-Z]{2,}|\\text\s*\{[^{}]*[a-zA-Z]{2,}[^{}]*\}\s*\S")
CONDITIONAL = re.compile(
    r"\b(?:if|when|unless|for|where|or|not|than|except|least|most|between|either|neither|without|no|none|cannot)\b"
)
WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
CONDITION = re.compile(
    r"(?:[\s,~]|\\[,;:! ]|\\q?quad\b|\()*(?:\\(?:text|mbox|mathrm)\s*\{\s*\(?\s*)?"
    r"\b(?:where|with|for (?:all|any|every|each|some)|as (?:required|desired|needed|wanted|expected|claimed|stated)"
    r"|since|because|so|which|hence|thus|when)\b.*"
    r"|[\s,;]+\(?[a-z](?:\s*,\s*[a-z])*\s*\\in\s*\\mathbb\s*\{?\s*[NZ].*|\s*\(?\\(?:pmod|bmod|mod)\b.*",
    re.DOTALL,
)
IS = re.compile(r"(?<![\\a-zA-Z])(?:is|are|equals|gives|giving|probability)(?![a-zA-Z])")
ASIDE = re.compile(r"\((?:i\.e\.|that is|which is|or|about)[^()]*\)$")
NEGATED = re.compile(r"\b(?:no|none|never|cannot|if|unless)\b")
HEDGE = re.compile(r"\bat (?:least|most)\b|\b(?:more|less|fewer|greater|smaller) than\b|\bor (?:more|less|fewer)\b")
COUNT = re.compile(
    rf"(-?[0-9][0-9.,]*(?:/[0-9]+)?)(?:\s+(?!(?:{NO_UNITS})\b)[a-zA-Z]{{2,}}[.'/-]?)+(?:\s*\([a-zA-Z.\s]*\))?"
)
LARGE_NUMBERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
LARGE = re.compile(rf"(-?[0-9]{{1,20}}(?:\.[0-9]{{1,20}})?)\s*({'|'.join(LARGE_NUMBERS)})(?:\s+[a-z]+)?")
APPROXIMATES = re.compile(r"\\(?:approx|doteq|simeq)(?![a-zA-Z])")


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
    text = JOINED.sub("", CURRENCY.sub("", text))
    if "(" not in text and "[" not in text and "\\{" not in text:  # in brackets a comma separates: (12,102) is a pair
        text = THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    text = SPACED.sub(lambda m: m[0].replace(" ", ""), text)
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
    text = BARE_POWER.sub(r"^{\1}", text)
    text = MIXED.sub(lambda m: m[1] + (f"\\frac{{{m[2]}}}{{{m[3]}}}" if m[2] else ""), text)
    text = CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = REPEATING.sub(repeating_decimal, LEADING_DOT.sub("0.", text))
    return bare(re.sub(r"\s+", " ", FACTORS.sub(r"\g<0>\\cdot ", text))) or answer.strip().strip("$")


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


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The text cut at separators outside of all brackets; in one piece where the brackets do not match."""
    if separator.search(text) is None:
        return [text]
    depth, start, parts = 0, 0, []
    marks = [(m.start(), m.end(), None) for m in separator.finditer(text)]
    brackets = [(m.start(), m.end(), 1 if OPENS.fullmatch(m[0]) else -1) for m in BRACKETS.finditer(text)]
    for begin, end, step in sorted(marks + brackets):
        if step is not None:
            depth += step
            if depth < 0:
                return [text]
        elif depth == 0:
            parts.append(text[start:begin])
            start = end
    return [text] if depth else [*parts, text[start:]]


def elements(answer: str) -> tuple[str, list[str]]:
    """The brackets around a list (`()`, `[)`, `{}`, or none) and its elements; one element for what is no list."""
    text = answer.strip()
    inside, brackets = text, ""
    if text.startswith(("(", "[")) and text.endswith((")", "]")) and closes_at_the_end(text):
        inside, brackets = text[1:-1], text[0] + text[-1]
    elif text.startswith("\\{") and text.endswith("\\}") and closes_at_the_end(text):
        inside, brackets = text[2:-2], "{}"
    elif text.startswith("\\langle") and text.endswith("\\rangle") and closes_at_the_end(text):
        inside, brackets = text[7:-7], "()"
    elif text.startswith("{") and text.endswith("}") and closes_at_the_end(text):
        inside, brackets = text[1:-1], "{}"
    parts = [bare(part) for part in split(inside, SEPARATOR)]
    return brackets, [part for part in parts if part]


def closes_at_the_end(text: str) -> bool:
    """Whether the bracket that begins the text is closed by the one that ends it."""
    depth = 0
    for bracket in BRACKETS.finditer(text):
        depth += 1 if OPENS.fullmatch(bracket[0]) else -1
        if depth <= 0:
            return depth == 0 and bracket.end() == len(text)
    return False


def sides(answer: str, membership: bool = False) -> list[str]:
    """The sides of an equation or of a chain of them; with `membership` also of `x \\in A`. A list has but one."""
    if len(split(answer, SEPARATOR)) > 1:
        return [answer.strip()]
    return [part.strip() for part in split(answer, EQUALS_OR_IN if membership else EQUALS)]


def is_name(text: str) -> bool:
    """Whether a left side only names what the right one is: `x`, `k_{\\max}`, `f(x)`, `\\mathbb{E}[X]`."""
    return NAME.fullmatch(text.strip()) is not None


def value_side(answer: str) -> str:
    """What an equation says of its unknown: its last side, or the first where the last is a mere name (`3 = x`)."""
    parts = sides(answer)
    if len(parts) == 1:
        return sides(answer, membership=True)[-1]
    parts[-1] = sides(parts[-1], membership=True)[0]  # t = 3 \in (0, 5)
    if is_name(parts[-1]) and LETTER.match(parts[-1]) and not is_name(parts[0]):
        return parts[0]
    return parts[-1]


def without_condition(answer: str) -> str:
    """The answer without a remark behind it: `12, as required`, `2k, where k is an integer`."""
    match = CONDITION.search(answer)
    return bare(answer[: match.start()]) if match and match.start() else answer


def counted_out(answer: str) -> str | None:
    """The number of an answer that is one with words behind it, `12 apples (one dozen)`; None for anything else."""
    text = ASIDE.sub("", bare(TEXTS.sub(r" \1 ", answer)))
    match = COUNT.fullmatch(bare(text))
    return match[1] if match and CONDITIONAL.search(text) is None else None


def in_full(answer: str) -> str | None:
    """`2500000` for `2.5 million`; None for anything else."""
    match = LARGE.fullmatch(bare(TEXTS.sub(r" \1 ", answer)))
    return canonical(Fraction(match[1]) * LARGE_NUMBERS[match[2]]) if match else None


def conclusion(answer: str) -> str | None:
    """What a sentence, a chain of implications or a calculation over lines ends in; None for anything else, and for one
    that ends in a condition."""
    lines = ALIGNED.sub(" ", answer).replace("&", " ")
    if lines == answer and not IMPLIES.search(answer) and not PROSE.search(answer):
        return None
    text = TEXTS.sub(r" \1 ", lines)
    sentence = next((part for part in reversed(SENTENCE_END.split(text)) if bare(part)), "")
    sentence = bare(IMPLIES.split(sentence)[-1])
    if CONDITIONAL.search(sentence) or "\\begin" in sentence:
        return None
    clause, clauses = sentence, [part for part in split(sentence, SEPARATOR) if EQUALS.search(part)]
    if clauses:  # the last one where it follows from those before; they may be answers side by side, `x = 3, x = 5`
        clause, last_sides = clauses[-1], sides(clauses[-1])
        if len(clauses) > 1 and len(last_sides) <= 2 and is_name(WORD.sub("", last_sides[0])):
            return None
    last = bare(IS.split(ASIDE.sub("", bare(sides(clause)[-1])))[-1])
    inside = [part for part in WORD.split(last) if bare(part)]
    return bare(inside[0]) if len(inside) == 1 else None
