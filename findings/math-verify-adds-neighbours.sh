#!/bin/bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0) adds numbers that stand side by side, loses the exponent in
# 2^\frac{1}{3}, and calls all values below its fifteen digits equal.
# Seen: 2(3) -> 5; 2\binom{5}{2} -> 12; 2 1/4 -> 3/4; 12\,345 -> 357; 2^\frac{1}{3} -> 2; 1/2^80 = 1/2^81 -> True.
# Depends on it: minos_ray/grading/forms.py writes these forms out before math-verify reads them, and
# minos_ray/grading/same.py compares exact constants by their exact values.
set -e
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q "math-verify[antlr4_13_2]==0.9.0"
"$place/venv/bin/python" - <<'PY'
import logging
import sys

from math_verify import parse, verify

logging.disable(logging.CRITICAL)
expected = {"2(3)": "5", r"2\binom{5}{2}": "12", "2 1/4": "3/4", r"12\,345": "357", r"2^\frac{1}{3}": "2"}
seen = {text: str(parse(f"${text}$")[0]) for text in expected}
tiny = verify(parse(r"$\frac{1}{2^{80}}$"), parse(r"$\frac{1}{2^{81}}$"))
for text, value in seen.items():
    print(f"{text} -> {value}")
print(f"1/2^80 = 1/2^81 -> {tiny}")
sys.exit(0 if seen == expected and tiny else 1)
PY
