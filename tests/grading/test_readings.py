"""Answers as people write them: what a careful reader accepts, and as important, what not."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minos_ray.evaluation.answers import quick
from minos_ray.grading.forms import normal, readable
from minos_ray.grading.graders import gsm8k, math
from minos_ray.grading.latex import extract_latex, gold_latex
from minos_ray.grading.numbers import extract_number
from minos_ray.grading.parts import conclusion, elements, sides, value_side, without_condition
from minos_ray.grading.same import same_text, same_value
from minos_ray.steps.own_text import own_solution

MATH = [
    # gold, text, correct
    ("32", "The number of correct answers is $13 + 0.25(n - 20)$. So $n = 32$.\nThe test had **32** questions.", True),
    ("1,2,3", "The answer is: $1$, $2$, and $3$.", True),
    ("1,-2", "The answers are $1$ and $-2$.", True),
    ("1,-2", "The answers are 1 and -2.", True),
    ("1,2", "\\boxed{x=1\\text{ or }2}", True),
    ("C", "\\boxed{C) 14}", True),
    ("C", "\\boxed{\\textbf{(C)}\\ 14}", True),
    ("\\textbf{(C)}\\ 14", "\\boxed{C}", True),
    ("C", "The answer is (C).", True),
    ("C", "\\boxed{\\text{C. } 14}", True),
    ("12", "\\boxed{12 \\%}", True),
    ("0.12", "\\boxed{12\\%}", True),
    ("5", "\\boxed{5\\,\\mathrm{m/s}}", True),
    ("30", "\\boxed{30^\\circ C}", True),
    ("5", "\\boxed{5\\text{ cm}^{2}}", True),
    ("5", "\\boxed{5 \\, cm^3}", True),
    ("5", "\\boxed{€5}", True),
    ("5", "\\boxed{5€}", True),
    ("5", "\\boxed{5\\text{ square units}}", True),
    ("5", "\\boxed{5 square units}", True),
    ("5", "\\boxed{5 units^2}", True),
    ("5", "\\boxed{5 \\text{ m}/\\text{s}}", True),
    ("5", "\\boxed{5\\text{ km}\\cdot\\text{h}^{-1}}", True),
    ("5m", "\\boxed{5m}", True),
    ("5", "\\boxed{\\text{5 cm}}", True),
    ("-3", "\\boxed{\u22123}", True),
    ("300000", "\\boxed{3\u00d710⁵}", True),
    ("x_1", "\\boxed{x₁}", True),
    ("\\frac{7}{3}", "\\boxed{2⅓}", True),
    ("x\\le 3", "\\boxed{x ≤ 3}", True),
    ("\\infty", "\\boxed{∞}", True),
    ("1 \\pm \\sqrt{2}", "\\boxed{1 ± √2}", True),
    ("\\frac{\\sqrt{3}}{2}", "\\boxed{√3/2}", True),
    ("(-\\infty,1]\\cup[2,\\infty)", "\\boxed{(\u2212∞,1]\u222a[2,∞)}", True),
    ("\\sqrt[3]{5}", "\\boxed{∛5}", True),
    ("\\emptyset", "\\boxed{∅}", True),
    ("2\\pi", "\\boxed{2π}", True),
    ("60", "\\boxed{60\u00ba}", True),
    ("1010_2", "\\boxed{1010_{2}}", True),
    ("1010_2", "\\boxed{(1010)_2}", True),
    ("1010_2", "\\boxed{1010_{\\text{two}}}", True),
    ("1010_2", "\\boxed{1010_{3}}", False),
    ("1010_2", "\\boxed{10}", False),
    ("2A_{16}", "\\boxed{2A_{16}}", True),
    ("10", "\\boxed{\\dbinom{5}{2}}", True),
    ("30", "\\boxed{3{5 \\choose 2}}", True),
    ("36", "\\boxed{3!\\binom{4}{2}}", True),
    ("30", "\\boxed{\\binom{5}{2}\\binom{3}{1}}", True),
    ("13", "\\boxed{\\binom{5}{2}\\binom{3}{1}}", False),
    ("30", "\\boxed{\\binom{5}{2}\\cdot 3}", True),
    ("30", "\\boxed{\\binom{5}{2}3}", True),
    ("30", "\\boxed{\\binom52 \\cdot 3}", True),
    ("20", "\\boxed{2\\binom52}", True),
    ("12", "\\boxed{2\\binom52}", False),
    ("\\sqrt{2}", "\\boxed{2^{1/2}}", True),
    ("2^{0.5}", "\\boxed{\\sqrt 2}", True),
    ("8", "\\boxed{2^3}", True),
    ("x^{\\frac{1}{2}}", "\\boxed{\\sqrt{x}}", True),
    ("4", "\\boxed{8^\\frac{2}{3}}", True),
    ("2/3", "\\boxed{8^\\frac{2}{3}}", False),
    ("2^{10}", "\\boxed{2^10}", True),
    ("5", "So the answer is 5. \\boxed{}", True),
    ("5", "\\boxed{5} and then \\boxed{}", True),
    ("7", "\\boxed{f(2)=7}", True),
    ("7", "\\boxed{P(A \\cap B)=7}", True),
    ("7", "\\boxed{|AB|=7}", True),
    ("7", "\\boxed{\\angle ABC = 7^\\circ}", True),
    ("7", "\\boxed{\\text{Area} = 7}", True),
    ("7", "\\boxed{\\text{Area of } ABC = 7}", True),
    ("7", "\\boxed{n_{\\min}=7}", True),
    ("7", "\\boxed{\\max(x+y)=7}", True),
    ("7", "\\boxed{a+b=7}", True),
    ("7", "\\boxed{S_{10}=3+4=7}", True),
    ("k=7", "\\boxed{7}", True),
    ("k_{\\max}=7", "\\boxed{7}", True),
    ("k_{\\max}=7", "\\boxed{k=7}", True),
    ("12", "The final answer is: 12 pears, since 3*4=12.", True),
    ("12", "#### 12 dollars per day", True),
    ("12", "Answer: 12 apples.", True),
    ("12", "The answer is approximately 12.", True),
    ("\\frac{1}{2}", "The answer is $\\frac{1}{2}$ of the cake.", True),
    ("12", "The answer is $12$ apples.", True),
    ("12", "The answer is **12**.", True),
    ("12", "The answer is 12 or 13.", False),
    ("12", "The answer is between 12 and 13", False),
    ("x+1", "The answer is x+1.", True),
    ("3", "\\boxed{3.0}", True),
    ("3", "\\boxed{3.}", True),
    ("3", "\\boxed{3;}", True),
    ("3", "\\boxed{3 \\text{.}}", True),
    ("3", "\\boxed{3\\,.}", True),
    ("\\frac12", "\\boxed{\\frac{1}{2}.}", True),
    ("3.5", "\\boxed{3.5.}", True),
    ("x+1", "\\boxed{x+1.}", True),
    ("(1,2)", "\\boxed{(1,2).}", True),
    ("7,-3", "$7$ and $-3$", True),
    ("$7$ and $-3$", "\\boxed{-3, 7}", True),
    ("$x=1$ or $x=2$", "\\boxed{1,2}", True),
    ("\\(7\\), \\(-3\\)", "\\boxed{7,-3}", True),
    ("\\[7\\]", "\\boxed{7}", True),
    ("$7$ cm", "\\boxed{7}", True),
    ("The area is $7$.", "\\boxed{7}", True),
    ("$\\frac{1}{2}$.", "\\boxed{0.5}", True),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", True),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{bmatrix}1\\\\2\\end{bmatrix}}", True),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\boxed{\\begin{pmatrix}2\\\\1\\end{pmatrix}}", False),
    ("10^{-9}", "\\boxed{10^{-10}}", False),
    ("10^{-20}", "\\boxed{0}", False),
    ("0", "\\boxed{10^{-20}}", False),
    ("e^{-100}", "\\boxed{e^{-101}}", False),
    ("2^{-60}\\pi", "\\boxed{2^{-61}\\pi}", False),
    ("1-10^{-30}", "\\boxed{1}", False),
    ("(1,10^{-30})", "\\boxed{(1,10^{-31})}", False),
    ("10^{100}+1", "\\boxed{10^{100}}", False),
    ("1 000 000", "\\boxed{1000000}", True),
    ("12345", "\\boxed{12 345}", True),
    ("3", "\\boxed{1 2}", False),
    ("1,000", "\\boxed{1\\,000}", True),
    ("1001", "\\boxed{1\\,000}", False),
    ("1", "\\boxed{1\\,000}", False),
    ("x=1,y=2", "\\boxed{(1,2)}", True),
    ("(1,2)", "\\boxed{y=2,x=1}", True),
    ("(x,y)=(1,2)", "\\boxed{x=1, y=2}", True),
    ("2+3i", "\\boxed{3i+2}", True),
    ("-1", "\\boxed{i^2}", True),
    ("5", "\\boxed{(2+i)(2-i)}", True),
    ("10 \\text{ hours } 30 \\text{ minutes}", "\\boxed{10}", False),
    ("no solution", "\\boxed{\\text{No solution}}", True),
    ("\\text{True}", "\\boxed{\\text{true}}", True),
    ("6 - 5i", "\\boxed{6-5i}", True),
    ("11\\frac{5}{6}", "\\boxed{11 5/6}", True),
    ("-\\frac{5}{2}", "\\boxed{-2\\frac12}", True),
    ("2", "\\boxed{2 2/3}", False),
    ("10", "\\boxed{4 10/3}", False),
    ("7200 \\mathrm{MB}", "\\boxed{7200\\text{ MB (i.e., }7\\text{ GB }32\\text{ MB)}}", True),
    ("7", "\\boxed{\\text{Students with black hair but not glasses} = 10 - 3 = 7}", True),
    ("25", "\\boxed{\\text{Then }x=5.\\ \\text{So the area is }25.}", True),
    ("5", "\\boxed{\\text{Then }x=5.\\ \\text{So the area is }25.}", False),
    ("5", "\\boxed{5 \\text{ if } n = 2 \\text{ and } 6 \\text{ otherwise}}", False),
    ("1", "The answer is $1$ and $-2$.", False),
    ("a=1", "The answer is $a=1$ or $a=-2$.", False),
    ("3", "The final answer is: $x = 3$ or $x = 5$. I hope it is correct.", False),
    ("1, -2", "The answer is $1$ and $-2$.", True),
    ("(1,2)", "The answer is $x=1$ and $y=2$.", True),
    (
        "12",
        "<think>\nMaybe \\boxed{9}? No: one more row, 12.\n</think>\n\nSo the final answer is 12.",
        True,
    ),
    (
        "9",
        "<think>\nMaybe \\boxed{9}? No: one more row, 12.\n</think>\n\nSo the final answer is 12.",
        False,
    ),
    ("9", "<think>\nMaybe 3*3 so \\boxed{9}? No, let me check the other case. There we have", False),
    ("\\frac{5}{4}", "\\boxed{1 1/4}", True),
    ("2.5", "\\boxed{2 1/2}", True),
    ("\\frac{71}{6}", "\\boxed{11 5/6}", True),
    ("-\\frac{5}{2}", "\\boxed{-2 1/2}", True),
    ("\\frac{5}{2}", "The answer is 2 1/2.", True),
    ("E", "\\boxed{E: cooling the sample}", True),
    ("E", "\\boxed{\\text{(E) } 12}", True),
    ("E", "\\boxed{\\textbf{(E)}}", True),
    ("D", "\\boxed{E: cooling the sample}", False),
    ("\\frac{1}{2^{80}}", "\\boxed{\\frac{1}{2^{81}}}", False),
    ("\\frac{1}{1990!}", "\\boxed{\\frac{1}{1991!}}", False),
    ("\\frac{3^{500}+1}{2 \\cdot 3^{501}}", "\\boxed{\\frac{1}{2 \\cdot 3^{501}}}", False),
    ("\\frac{1}{10^{12}}", "\\boxed{10^{-12}}", True),
    ("52_8", "\\boxed{52_9}", False),
    ("1011_2", "\\boxed{1011_{10}}", False),
    ("52_8", "\\boxed{52}", True),
    ("$7$, $-3$", "\\boxed{7, -3}", True),
    ("$7$, $-3$", "\\boxed{-3}", False),
    ("5", "\\boxed{r=5.}", True),
    ("2\\binom{5}{2}", "\\boxed{12}", False),
    ("2\\binom{5}{2}", "\\boxed{20}", True),
    ("2 1/4", "\\boxed{0.75}", False),
    ("2 1/4", "\\boxed{2.25}", True),
    ("2^\\frac{1}{3}", "\\boxed{\\frac13}", False),
    ("2^\\frac{1}{3}", "\\boxed{\\sqrt[3]{2}}", True),
    ("2, 5, 9", "So $2$, $5$, and $9$.", True),
    ("2,5,9", "so \\(2, 5,\\) and \\(9\\)", True),
    ("5, 9", "So $2$, $5$, and $9$.", False),
    ("7", "\\boxed{k_{\\max}=7}", True),
    ("3", "\\boxed{E(7, 3) = 3}", True),
    ("7", "\\boxed{\\mathbb E[k]=7}", True),
    ("12", "The answer is 12 pears.", True),
    ("12", "#### 12 dollars", True),
    ("12", "The answer is 12, as required.", True),
    ("90", "\\boxed{90°}", True),
    ("\\sqrt{5}", "\\boxed{√5}", True),
    ("3", "The side is 2√3.", False),
    ("2\\sqrt3", "The side is 2√3.", True),
    ("3^{-40}", "\\boxed{7^{-30}}", False),
    ("10", "\\boxed{10~\\text{cm}}", True),
    ("10", "\\boxed{10 cm^2}", True),
    ("12345", "\\boxed{x=12,345}", True),
    ("\\emptyset", "\\boxed{\\varnothing}", True),
    ("2i-1", "\\boxed{i(2+i)}", True),
    ("C", "\\boxed{(C) 14}", True),
    ("5", "So \\(\\boxed{}\\)", False),
    ("357", "\\boxed{12\\,345}", False),
    ("12345", "\\boxed{12\\,345}", True),
    ("0", "\\boxed{5 000}", False),
    ("5000", "\\boxed{5 000}", True),
    ("3/2", "\\boxed{2 1/2}", False),
    ("\\{1,2\\}", "\\boxed{(2,1)}", False),
    ("12:30", "\\boxed{0.4}", False),
    ("12:30", "\\boxed{12:30}", True),
    ("18", "x\n#### 18\n\nQuestion: Tom\nAnswer: 5 + 2 = 7\n#### 7", True),
    ("6", "\\boxed{2(3)}", True),
    ("5", "\\boxed{2(3)}", False),
    ("6", "\\boxed{(2)(3)}", True),
    ("5", "\\boxed{2 3}", False),
    ("10^{-3}", "\\boxed{10^-3}", True),
    ("\\sqrt{x}", "\\boxed{x^\\frac{1}{2}}", True),
    ("1/3", "\\boxed{0.\\overline{3}}", True),
    ("\\frac{1}{6}", "\\boxed{0.1\\overline{6}}", True),
    ("3", "\\boxed{x = 3}", True),
    ("3", "\\boxed{3 = x}", True),
    ("x^2", "\\boxed{x²}", True),
    ("\\pi/2", "\\boxed{π/2}", True),
    ("x\\ge 3", "\\boxed{x ≥ 3}", True),
    ("[1,2)", "\\boxed{(1,2)}", False),
    ("[1,2)", "\\boxed{[1,2)}", True),
    ("(1,2]", "\\boxed{[1,2]}", False),
    ("2", "\\boxed{2, 3}", False),
    ("2,3", "\\boxed{3, 2}", True),
    ("(2,3)", "\\boxed{(3,2)}", False),
    ("\\frac{3}{4}", "\\boxed{\\frac{3}{4} \\text{ or } 0.75}", True),
    ("\\frac34", "\\boxed{\\frac34 \\approx 0.75}", True),
    ("\\frac{1}{2}", "The answer is $\\frac{1}{2}$, which is $50\\%$.", True),
    ("nan", "\\boxed{nan}", False),
    ("", "\\boxed{5}", False),
    ("5", "The answer is $x = 5$, since $y=3$.", True),
    ("6", "The answer is $2 \\cdot 3 = 6$.", True),
    ("x=5", "\\boxed{y=5}", False),
    ("30", "\\boxed{30^{\\circ}\\text{C}}", True),
    ("12", "\\boxed{12\\text{ or }13}", False),
    ("12", "\\boxed{\\text{12 apples}}", True),
    ("5", "\\boxed{\\$5.00}", True),
    ("1", "\\boxed{-1}", False),
    ("0.333", "\\boxed{1/3}", False),
    ("5", "<answer>5</answer>", True),
    ("\\frac{1}{2}", "<think>x</think><answer>\\frac{1}{2}</answer>", True),
    ("3", "\\boxed{\\text{at least }3}", False),
    ("3", "\\boxed{\\text{There are no solutions for } n=3}", False),
    ("10", "\\boxed{2x=10}", True),
    ("4", "\\boxed{x^2+y^2=4}", True),
    ("\\text{Monday}", "\\boxed{\\text{Tuesday}}", False),
    ("\\text{Yes}", "\\boxed{Yes.}", True),
    ("(C) 14", "\\boxed{14}", True),
    ("(C) 14", "\\boxed{C}", True),
    ("(C) 14", "\\boxed{D}", False),
    ("2\\pi", "The area is 2π.", True),
    ("2", "The area is 2π.", False),
    ("x = -1, 3", "\\boxed{3, -1}", True),
    ("(x,y)=(1,2)", "\\boxed{(1,2)}", True),
    ("(-1, 2)", "\\boxed{(-1, 2).}", True),
    ("5", "\\boxed{x=3, y=5}", False),
    ("5", "\\boxed{x=3 \\text{ or } x=5}", False),
    ("a=2, a=-6", "\\boxed{-6}", False),
    ("a=2, a=-6", "\\boxed{2, -6}", True),
    ("5", "\\boxed{\\text{The solutions are } x=3, x=5}", False),
    ("1-\\sqrt2, 1+\\sqrt2", "\\boxed{x = 1 \\pm \\sqrt 2}", True),
    ("335", "\\boxed{3=335 \\quad(\\bmod 2010)}", True),
    ("3", "\\boxed{x \\in \\{3\\}}", True),
    ("\\{1,2\\}", "\\boxed{x \\in \\{1,2\\}}", True),
    ("10", "\\boxed{3+x=5 \\Rightarrow x=2,\\quad -3+y=5 \\Rightarrow y=8,\\quad x+y=2+8=10.}", True),
    ("4", "The answer is $2$ and $4$.", False),
    ("2k\\pi, k \\in \\mathbb{Z}", "\\boxed{2k\\pi, k \\in \\mathbb Z}", True),
    ("(-\\infty,1) \\cup (2,\\infty)", "\\boxed{(2,\\infty)\\cup(-\\infty,1)}", True),
    ("\\frac{x+1}{2}", "\\boxed{\\frac{1}{2}(x+1)}", True),
    ("x^2+1", "\\boxed{x^2-1}", False),
    ("[1,2,3]", "\\boxed{1,2,3}", True),
    ("0.5", "\\boxed{.5.}", True),
    ("3", "\\boxed{3\\,\\text{m}^2}", True),
    ("6", "\\boxed{6xyz}", False),
    ("12", "\\boxed{12x}", False),
    ("100", "\\boxed{100\\text{ or more}}", False),
    ("\\sqrt{2}", "\\boxed{1.41421356}", True),
    ("\\pi", "\\boxed{3.14}", False),
    ("25", "\\boxed{5^2}", True),
    ("1/3", "\\boxed{33.3\\%}", False),
    ("8", "The answer is $2^3$", True),
    ("2^3", "8", True),
    ("1000", "\\boxed{10^3}", True),
    ("7", "Therefore, $x = 7$.", True),
    ("7", "$x = 7$ and $y=3$", False),
    ("3", "\\boxed{1+2}", True),
    ("6", "\\boxed{1,2,3}", False),
    ("123", "\\boxed{1,2,3}", False),
    ("1,234", "\\boxed{1234}", True),
    ("1,2,34", "\\boxed{1234}", False),
    ("-3", "\\boxed{3}", False),
    ("3", "\\boxed{-3}", False),
    ("x>3", "\\boxed{x<3}", False),
    ("x>3", "\\boxed{(3,\\infty)}", True),
    ("2:3", "\\boxed{\\frac{2}{3}}", True),
    ("2:3", "\\boxed{3:2}", False),
    ("10:30", "\\boxed{10:30 \\text{ a.m.}}", True),
    ("even", "\\boxed{\\text{even}}", True),
    ("even", "\\boxed{odd}", False),
    ("B", "The answer is (B) 12.", True),
    ("B", "\\boxed{b}", True),
    # times of day, ratios
    ("3:30\\text{ p.m.}", "\\boxed{3:30\\text{ a.m.}}", False),
    ("3:30\\text{ p.m.}", "\\boxed{3:30 PM}", True),
    ("3:30", "The answer is 3:30 p.m.", True),
    ("3\\text{ p.m.}", "\\boxed{3\\text{ a.m.}}", False),
    ("3\\text{ p.m.}", "\\boxed{3:00\\text{ p.m.}}", True),
    ("3", "\\boxed{3\\text{ p.m.}}", True),
    ("3:00", "\\boxed{3}", False),
    ("8\\text{ p.m.}", "The answer is 8 p.m.", True),
    ("15:45", "\\boxed{3:45\\text{ p.m.}}", True),
    ("15:45", "\\boxed{3:45\\text{ a.m.}}", False),
    ("12:30\\text{ p.m.}", "\\boxed{0:30}", False),
    ("\\frac{1\\pm\\sqrt5}{2}", "\\boxed{\\frac{1+\\sqrt5}{2},\\frac{1-\\sqrt5}{2}}", True),
    ("1,-1,2,-2", "\\boxed{\\pm1,\\pm2}", True),
    ("1,-1,2,-3", "\\boxed{\\pm1,\\pm2}", False),
    ("x<1\\text{ or }x>2", "\\boxed{(-\\infty,1)\\cup(2,\\infty)}", True),
    ("x<1\\text{ or }x>2", "\\boxed{(-\\infty,1)\\cup(3,\\infty)}", False),
    ("12", "\\boxed{\uff11\uff12}", True),
    ("1:2:3", "\\boxed{1:3:2}", False),
    ("1:2:3", "\\boxed{a:b:c=1:3:2}", False),
    ("1:2:3", "\\boxed{2:4:6}", True),
    # what has an order keeps it
    ("(1,2)", "\\boxed{2,1}", False),
    ("(1,2)", "\\boxed{1,2}", True),
    ("(1,2)", "\\boxed{x=2,y=1}", False),
    ("a=3,b=4", "\\boxed{4,3}", False),
    ("a=3,b=4", "\\boxed{3,4}", True),
    ("b=4,a=3", "\\boxed{4,3}", True),
    ("x_1=3,x_2=4", "\\boxed{4,3}", True),
    ("\\langle 1,2\\rangle", "\\boxed{(1,2)}", True),
    ("\\langle 1,2\\rangle", "\\boxed{\\langle 2,1\\rangle}", False),
    # several choices are none of them
    ("B", "\\boxed{(B), (C)}", False),
    ("B", "\\boxed{(B) and (C)}", False),
    ("B", "\\boxed{\\text{Option B}}", True),
    ("B", "The answer is choice (B).", True),
    ("B", "The correct answer is option C.", False),
    # intervals as inequalities, where they can be nothing else
    ("(3,\\infty)", "\\boxed{x>3}", True),
    ("(3,\\infty)", "\\boxed{x\\ge3}", False),
    ("[1,2]", "\\boxed{1\\le x\\le 2}", True),
    ("[1,2]", "\\boxed{1<x<2}", False),
    ("(-\\infty,2)\\cup(3,\\infty)", "\\boxed{x<2\\text{ or }x>3}", True),
    ("(-\\infty,2)\\cup(3,\\infty)", "\\boxed{x<2\\text{ or }x>4}", False),
    # numbers, units and words
    ("2000000", "\\boxed{2\\text{ million}}", True),
    ("2.5\\text{ million}", "\\boxed{2,500,000}", True),
    ("2500000", "\\boxed{2.4\\text{ million}}", False),
    ("3\\frac12\\%", "\\boxed{3.5\\%}", True),
    ("3\\frac12\\%", "\\boxed{3.6\\%}", False),
    ("6.02\\times10^{23}", "\\boxed{6.02e23}", True),
    ("0.00001", "\\boxed{1e-4}", False),
    ("12", "\\boxed{12\\ \\frac{\\text{km}}{\\text{h}}}", True),
    ("5", "\\boxed{5^{\\text{th}}}", True),
    ("10\\pi", "The answer is 10pi.", True),
    ("10", "The answer is 10pi.", False),
    ("5", "Answer: `5`", True),
    ("5", "\\boxed{\\euro 5}", True),
    ("\\log_2 8", "\\boxed{3}", True),
    ("2\\mathbf{i}+3\\mathbf{j}", "\\boxed{3\\mathbf{j}+2\\mathbf{i}}", True),
    ("k\\pi", "\\boxed{k\\pi, k\\in\\mathbb{Z}}", True),
    ("3,5", "The answer is either 3 or 5.", True),
    ("3", "The answer is either 3 or 5.", False),
    ("15", "The answer is not 12 but 15.", True),
    ("12", "The answer is not 12 but 15.", False),
    ("12", "The answer is 12 apples (3 each).", True),
    ("3", "The answer is 12 apples (3 each).", False),
    ("12", "The answer is 12; see above.", True),
    ("1,2", "The answer is 1; and 2.", True),
    ("D", "The correct option is (D).", True),
    ("10", "\\boxed{US\\$10}", True),
    ("10", "\\boxed{10¢}", True),
    ("(2,\\infty)", "\\boxed{\\{x \\mid x>2\\}}", True),
    ("\\{x \\mid x>2\\}", "\\boxed{x>2}", True),
    ("\\{x : x>2\\}", "\\boxed{x>3}", False),
]

GSM8K = [
    ("12", "The answer is 12 pears, not 13.", True),
    ("13", "The answer isn't 12 but 13.", True),
    ("6", "The answer is 3 plus 3, which is 6.", True),
    ("5", "The answer is that the 3 boys have 5 marbles each.", True),
    ("18", "The answer is 18 (9 * 2).", True),
    ("20", "The answer is $20 for the 4 of them.", True),
    ("7", "<answer>7</answer>", True),
    ("9", "The answer is 9</s>", True),
    ("4", "The answer is 2√3.", False),
    ("30", "The answer is 30% of 100, which is 30.", True),
    ("18", "Answer: 18\n\nUser: thanks\nAssistant: 5", True),
    ("18", "The answer is 18.\n\n\nQ: Next? There are 5.\nA: The answer is 5.", True),
    ("24", "The answer is 4 times 6, which gives 24.", True),
    ("15", "So the answer is not 12 but 15.", True),
    ("5", "The answer is that each of the 3 friends gets 5 apples.", True),
    ("3", "The answer is that each of the 3 friends gets 5 apples.", False),
    ("12", "<think>\nSo \\boxed{9}? No: one more row.\n</think>\n\nThey have **12 apples**.", True),
    ("9", "<think>\nThat is 3 * 3 = 9 so far. Next I should", False),
    ("18", "She makes 9 * 2 = 18 dollars.\n#### 18\n\nQuestion: Tom has\nAnswer: 5 + 2 = 7\n#### 7", True),
    ("3", "The side is 2√3", False),
    ("18", "The answer is: 18 dollars per day for 2 days", True),
    ("1200000", "The answer is 1'200'000.", True),
    ("5", "The answer is '5'.", True),
    ("5.375", "The answer is 5\u215c.", True),
    ("12", "The answer is \uff11\uff12.", True),
]


@pytest.mark.parametrize(("gold", "text", "correct"), MATH)
def test_math(gold: str, text: str, correct: bool) -> None:
    assert math(gold, text).correct is correct


@pytest.mark.parametrize(("gold", "text", "correct"), GSM8K)
def test_gsm8k(gold: str, text: str, correct: bool) -> None:
    assert gsm8k(gold, text).correct is correct


@pytest.mark.parametrize(
    "text",
    [
        "So \\(\\boxed{}\\)",
        "\\boxed{ }",
        "<think>\nMaybe \\boxed{9}? Let me",
        "The answer is \\boxed{}",
        "\\boxed{$$}",
        "(*)",
    ],
)
def test_an_empty_box_and_unfinished_thinking_answer_nothing(text: str) -> None:
    assert math("5", text).status == "no_answer" and gsm8k("5", text).status == "no_answer"


@pytest.mark.parametrize("gold", ["nan", "NaN", "", "  ", "None", "null"])
def test_a_missing_gold_makes_nothing_right(gold: str) -> None:
    assert gold_latex(gold) is None
    assert not math(gold, f"\\boxed{{{gold.strip() or '0'}}}").correct and not gsm8k(gold, "#### 0").correct


RUNS_ON = [
    ("She makes 18.\n#### 18\n\nQuestion: Tom has 5.\nAnswer: 7\n#### 7", "She makes 18.\n#### 18\n"),
    ("The answer is: 18\n\nQ: next\nA: 7", "The answer is: 18\n"),
    ("So \\boxed{18}.\n\nProblem 2: next\n\\boxed{7}", "So \\boxed{18}.\n"),
    ("It is 18.<|im_end|>\n<|im_start|>user\nnext", "It is 18.<|im_end|>\n"),
    ("It is 18.\n\n### Instruction:\nnext\n### Response: 7", "It is 18.\n"),
    ("It is 18 [INST] next [/INST] 7", "It is 18 "),
    # a solution that repeats the question, or lists several, is whole
    ("Question: how many?\nThe answer is 18.", "Question: how many?\nThe answer is 18."),
    ("Let us see.\nProblem: find x.\nThe answer is 18.", "Let us see.\nProblem: find x.\nThe answer is 18."),
    (
        "Question: a\nThe answer is 6.\nQuestion: b\nThe answer is 8.",
        "Question: a\nThe answer is 6.\nQuestion: b\nThe answer is 8.",
    ),
    (
        "That answer is about rabbits.\n**Question:** x\nThe answer is 3",
        "That answer is about rabbits.\n**Question:** x\nThe answer is 3",
    ),
    ("The input is 3.\n2 < 3 and [1, 2]", "The input is 3.\n2 < 3 and [1, 2]"),
    ("The answer is 5.<|endoftext|>Human: b \\boxed{6}", "The answer is 5."),
    ("The answer is 5.</s> The answer is 6", "The answer is 5."),
    ("\\boxed{5}\n\nExample 3: b\n\\boxed{6}", "\\boxed{5}\n"),
    ("\\boxed{5}\n\n# Question\nb\n\\boxed{6}", "\\boxed{5}\n"),
    ("\\boxed{5}\nNext question: b \\boxed{6}", "\\boxed{5}"),
    ("It is 5.\n\n### Problem: b", "It is 5.\n"),
    ("Sure!\n\n### Problem:\nb\n### Solution:\n5", "Sure!\n\n### Problem:\nb\n### Solution:\n5"),
    ("</s>The answer is 5.", "</s>The answer is 5."),
    ("For example: 3.\nExample: 4.", "For example: 3.\nExample: 4."),
]


@pytest.mark.parametrize(("text", "own"), RUNS_ON)
def test_a_text_is_graded_up_to_the_next_question(text: str, own: str) -> None:
    assert own_solution(text) == own


GOLDS = [
    "12",
    "-7",
    "\\frac{3}{4}",
    "2\\sqrt{3}",
    "x+1",
    "(1, 2)",
    "\\{1, 2\\}",
    "[0, 1)",
    "\\pi",
    "2^{10}",
    "\\text{Evelyn}",
    "5, 7",
]
WRAPPED = [
    "{}",
    " {} ",
    "${}$",
    "\\({}\\)",
    "{}.",
    "${}$.",
    "{}\\,",
    "\\displaystyle {}",
    "\\;{}\\;",
    "{}\\text{{.}}",
    "**{}**",
    "\\quad {}",
]


@given(st.sampled_from(GOLDS), st.sampled_from(WRAPPED), st.sampled_from(["\\boxed{{{}}}", "The answer is: {}"]))
def test_what_surrounds_an_answer_changes_nothing(gold: str, wrapper: str, mark: str) -> None:
    assert math(gold, mark.format(wrapper.format(gold))).correct


UNITS = [
    "{} cm",
    "{}\\text{{ cm}}",
    "{}~\\mathrm{{cm}}",
    "{} apples",
    "{}\\,\\text{{m}}^2",
    "x = {}",
    "N_{{\\max}} = {}",
    "{}^\\circ",
    "f(3) = {}",
    "{}, as required",
]


@settings(deadline=None)
@given(
    st.integers(-9999, 9999),
    st.integers(1, 9),
    st.sampled_from(UNITS),
    st.sampled_from(["\\boxed{{{}}}", "The answer is {}."]),
)
def test_units_and_left_sides_hide_no_number_and_no_difference(n: int, more: int, form: str, mark: str) -> None:
    text = mark.format(form.format(n))
    assert math(str(n), text).correct and not math(str(n + more), text).correct


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 99), st.integers(1, 9), st.integers(10, 19), st.integers(1, 3))
def test_mixed_numbers_are_their_value(whole: int, above: int, below: int, more: int) -> None:
    value = f"\\frac{{{whole * below + above}}}{{{below}}}"
    other = f"\\frac{{{whole * below + above + more}}}{{{below}}}"
    for form in (
        f"{whole} {above}/{below}",
        f"{whole}\\frac{{{above}}}{{{below}}}",
        f"{whole}\\ \\frac{{{above}}}{{{below}}}",
    ):
        assert same_value(value, form) and not same_text(other, form) and not same_value(other, form)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_lists_in_any_order_and_tuples_in_theirs(values: list[int], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    golds, others = ", ".join(map(str, values)), ", ".join(map(str, shuffled))
    for form in ("{}", "\\{{{}\\}}"):
        assert math(golds, f"\\boxed{{{form.format(others)}}}").correct
    prose = " and ".join([", ".join(f"${value}$" for value in shuffled[:-1]), f"${shuffled[-1]}$"])
    assert math(golds, f"So we have {prose}.").correct and math(golds, f"The answer is {prose}.").correct
    assert not math(golds, f"\\boxed{{{', '.join(map(str, shuffled[1:]))}}}").correct
    assert math(f"({golds})", f"\\boxed{{({others})}}").correct == (values == shuffled)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(30, 90), st.integers(1, 3))
def test_tiny_and_huge_values_are_told_apart(base: int, power: int, more: int) -> None:
    for sign in ("-", ""):
        gold, other = f"{base}^{{{sign}{power}}}", f"{base}^{{{sign}{power + more}}}"
        assert same_value(gold, gold) and not same_value(gold, other)


FORMS = [
    "{n}/{d}",
    "\\frac{{{n}}}{{{d}}}",
    "x = \\frac{{{n}}}{{{d}}}",
    "\\dfrac{{{n}}}{{{d}}}.",
    "({n}, {d})",
    "{n}, {d}",
]


@settings(deadline=None)
@given(st.integers(-30, 30), st.integers(1, 12), st.integers(1, 4), st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_equal_keys_are_graded_right(n: int, d: int, factor: int, form: str, other: str) -> None:
    gold, answer = form.format(n=n, d=d), other.format(n=n * factor, d=d * factor)
    same = same_text(gold, answer) or same_value(gold, answer)
    if quick(gold) is not None and quick(gold) == quick(answer):
        assert same
    elif "," not in gold + answer:
        assert not same


@given(
    st.text("0123456789.,;:/\\\\{}()[]<>=^_$~ abinortexfrcsq\u221a\u03c0\u00b2\u2212\u00bd\u00b0+-*%&\n", max_size=60)
)
@example("((" * 300)
@example("\\text{" * 50 + "}" * 50)
@example("=" * 100)
@example("0.\\overline{" + "3" * 5000 + "}")
@example("9" * 5000 + " 1/2")
@example("1:" + "0" * 5000)
def test_no_answer_is_too_odd_to_be_read(text: str) -> None:
    for read in (
        readable,
        normal,
        elements,
        sides,
        value_side,
        without_condition,
        conclusion,
        own_solution,
        gold_latex,
    ):
        read(text)
    extract_latex(text)
    extract_number(text)
    assert same_text(text, text)
