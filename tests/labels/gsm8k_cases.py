"""A few word problems of our own, written and annotated as GSM8K's are."""

from minos_ray.labels.calculations import Solution, read_solution

SHARED = (
    "Rosa picks 48 plums and half as many pears. She packs all the fruit into bags of 9. How many bags does she fill?",
    "8",
    [
        "Rosa picks 48/2 = <<48/2=24>>24 pears.",
        "With the 24 pears she has 48+24 = <<48+24=72>>72 pieces of fruit.",
        "She fills 72/9 = <<72/9=8>>8 bags.",
        "The answer is: 8",
    ],
)
MONEY = (
    "A lamp costs $1,250 and is sold at 20% off. Tax adds $40.50. What does the buyer pay?",
    "1040.50",
    [
        "The discount is 1,250 x 20% = $<<1250*20*.01=250>>250.",
        "So the lamp costs $1,250 - $250 = $<<1250-250=1000>>1,000.",
        "With tax that is 1,000 + 40.50 = $<<1000+40.5=1040.5>>1040.50.",
        "The answer is: 1040.50",
    ],
)
BRANCHES = (
    "Ida sells 7 cups at $3 and 11 bowls at $5 each. She pays $13 for the stall. What does she keep?",
    "63",
    [
        "The cups bring 7 * 3 = $<<7*3=21>>21.",
        "The bowls bring 11 * 5 = $<<11*5=55>>55.",
        "Together that is $21 + $55 = $<<21+55=76>>76.",
        "She keeps 76 - 13 = $<<76-13=63>>63.",
        "The answer is: 63",
    ],
)
CHAIN = (
    "A coach orders 2 nets at $17 and 6 balls at $19, and sells an old net for $31. What is the cost?",
    "117",
    [
        "The nets and balls cost 2*17+6*19 = $<<2*17+6*19=148>>148.",
        "The cost is (148 - 31) = $<<148-31=117>>117.",
        "The answer is: 117",
    ],
)
FOREIGN = (
    "Each of 83 crates holds 71 pins. How many pins are there?",
    "5893",
    ["There are 83 x 71 = <<83*71=5893>>5893 pins.", "The answer is: 5893"],
)
SAMPLES = {"shared": SHARED, "money": MONEY, "branches": BRANCHES, "chain": CHAIN}


def solution(case: tuple[str, str, list[str]], name: str = "p") -> Solution:
    """The solution of a case, read."""
    question, gold, steps = case
    return read_solution(name, name, question, gold, steps)
