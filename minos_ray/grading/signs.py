"""Mathematical signs of Unicode as LaTeX."""

import re

WORDS = {
    "\u00d7": "times",
    "\u00b7": "cdot",
    "\u22c5": "cdot",
    "\u00f7": "div",
    "\u00b1": "pm",
    "\u2213": "mp",
    "\u221e": "infty",
    "\u2264": "le",
    "\u2265": "ge",
    "\u2a7d": "le",
    "\u2a7e": "ge",
    "\u2260": "ne",
    "\u2248": "approx",
    "\u2261": "equiv",
    "\u21d2": "Rightarrow",
    "\u27f9": "Rightarrow",
    "\u21d4": "Leftrightarrow",
    "\u2192": "to",
    "\u2234": "therefore",
    "\u222a": "cup",
    "\u2229": "cap",
    "\u2208": "in",
    "\u2209": "notin",
    "\u2205": "emptyset",
    "\u2282": "subset",
    "\u2286": "subseteq",
    "\u2216": "setminus",
    "\u2220": "angle",
    "\u25b3": "triangle",
    "\u230a": "lfloor",
    "\u230b": "rfloor",
    "\u2308": "lceil",
    "\u2309": "rceil",
    "\u2211": "sum",
    "\u220f": "prod",
    "\u222b": "int",
    "\u2026": "ldots",
    "\u22ef": "cdots",
    "\u03c0": "pi",
    "\u03b1": "alpha",
    "\u03b2": "beta",
    "\u03b3": "gamma",
    "\u03b4": "delta",
    "\u03b5": "epsilon",
    "\u03b8": "theta",
    "\u03bb": "lambda",
    "\u03bc": "mu",
    "\u03c1": "rho",
    "\u03c3": "sigma",
    "\u03c4": "tau",
    "\u03c6": "phi",
    "\u03d5": "phi",
    "\u03c9": "omega",
    "\u0394": "Delta",
    "\u03a3": "Sigma",
    "\u03a9": "Omega",
}
OTHERS = {
    "\u00b0": "^\\circ",
    "\u00ba": "^\\circ",
    "\u02da": "^\\circ",
    "\u2115": "\\mathbb{N}",
    "\u2124": "\\mathbb{Z}",
    "\u211a": "\\mathbb{Q}",
    "\u211d": "\\mathbb{R}",
    "\u2102": "\\mathbb{C}",
    "\u2032": "'",
    "\u2019": "'",
    "\u2044": "/",
    "\u2215": "/",
    "\u2236": ":",
    "\uff0c": ",",
    "\uff1a": ":",
    "\uff1d": "=",
    "\uff08": "(",
    "\uff09": ")",
    "\u3002": ".",
} | dict.fromkeys("\u2212\u2013\u2012\u2010\u2011\uff0d", "-")
SPACES = dict.fromkeys("\u00a0\u2009\u202f\u2007\u200a\u2002\u2003\u3000", " ") | dict.fromkeys(
    "\u200b\u2060\ufeff", ""
)
FRACTIONS = {
    "\u00bd": "12",
    "\u00bc": "14",
    "\u00be": "34",
    "\u2153": "13",
    "\u2154": "23",
    "\u2155": "15",
    "\u2156": "25",
    "\u2157": "35",
    "\u2158": "45",
    "\u2159": "16",
    "\u215a": "56",
    "\u215b": "18",
    "\u215c": "38",
    "\u215d": "58",
    "\u215e": "78",
}
WIDE = {chr(0xFF10 + digit): str(digit) for digit in range(10)} | {"\ufe63": "-", "\uff0d": "-", "\uff0e": "."}
"""Digits and signs as wide as a Chinese character."""
SIGNS = str.maketrans(
    {sign: f"\\{word} " for sign, word in WORDS.items()}
    | OTHERS
    | SPACES
    | WIDE
    | {"\uff5b": "\\{", "\uff5d": "\\}"}
    | {sign: f"\\frac{{{digits[0]}}}{{{digits[1]}}}" for sign, digits in FRACTIONS.items()}
)
RAISED, LOWERED = (
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f",
    "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089",
)
RAISED_RUN, LOWERED_RUN = re.compile(f"[{RAISED}]+"), re.compile(f"[{LOWERED}]+")
PLAIN_RAISED, PLAIN_LOWERED = str.maketrans(RAISED, "0123456789-n"), str.maketrans(LOWERED, "0123456789")
ROOT = re.compile("([\u221a\u221b])\\s*(?:\\(([^()]*)\\)|\\{([^{}]*)\\}|([0-9]+(?:\\.[0-9]+)?|[a-zA-Z]))")


def latex_signs(text: str) -> str:
    """`2\\sqrt{3}` for 2√3, `x^{2}` for x², `\\pi ` for π; what is ASCII comes back as it is."""
    if text.isascii():
        return text
    text = RAISED_RUN.sub(lambda m: f"^{{{m[0].translate(PLAIN_RAISED)}}}", text)
    text = LOWERED_RUN.sub(lambda m: f"_{{{m[0].translate(PLAIN_LOWERED)}}}", text)
    return ROOT.sub(root, text).translate(SIGNS)


def root(found: re.Match[str]) -> str:
    """`\\sqrt{3}` for √3, √(3) and √{3}."""
    below = found[2] or found[3] or found[4] or ""
    return f"\\sqrt{'[3]' if found[1] == chr(0x221B) else ''}{{{below}}}"
