"""Read the number in the final answer of a word problem into one spelling per value.

A number is read to its end, with its sign, fraction, power of ten and number words, or it is no
answer: `2 million` is not 2, nor is `1.2e6` 1.2.
"""

import re
from fractions import Fraction

from tasks.math.answer import first_sentence
from tasks.math.formula import normalize_formula

LONGEST_NUMBER = 40  # characters; runaway digits must not cost quadratic time
LONGEST_STATEMENT = 1000
POWERS = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
          "trillion": 10**12}
VULGAR = {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅛": " 1/8"}
FRACTION = r"\\[dtc]?frac\s*+(?:\{\s*+([^{}]{1,30})\}|(\d))\s*+(?:\{\s*+([^{}]{1,30})\}|(\d))"
SIMPLER = [  # other spellings of the same
    (re.compile(FRACTION), r" \1\2/\3\4"),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;: ]|[ '\u202f\xa0])(?=\d{3}(?:\D|$))"), ""),  # 1 000
    (re.compile(r"[½⅓⅔¼¾⅛]"), lambda sign: VULGAR[sign[0]]),
    (re.compile(r"[⁄∕]"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\times(?![A-Za-z])|\\cdot(?![A-Za-z])|[×·]|(?<=\d) x (?=\d)"), "*"),
    (re.compile(r"(?i)\b(?:negative|minus)\s+(?=\\?[$€£]?\d)"), "-"),
    (re.compile(r"(?<=\d) \([^()]*\)"), ""),  # 42 (because 7 = 1 week)
]
NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?\\?[$€£¥]?\s?(?P<sign2>-?)\s?"  # -18  $18  -$18  $-18
    r"(?:(?P<whole>\d{1,9}) +(?=\d++/\d))?"  # of a mixed number
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?|\.\d++)"  # 1,000  18.50  .5
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?![\d.]))?"
    r"(?:\s?/\s?\$?(?P<below>\d[\d,]*+(?:\.\d++)?))?"
    r"(?:\s?\*\s?10\s?\^\s?\{?\s?(?P<ten>-?\d{1,3})\s?\}?)?"
    rf"(?P<words>(?:\s*\b(?:{'|'.join(POWERS)})s?\b)*)"
)
CALCULATION = re.compile(r"\s*(?:[-+*/÷]\s*\\?[-$(]?\s*\.?\d|\^|!|\(|\\sqrt|\\div)")
INSIDE = re.compile(r"(?:[\^_√]|\\sqrt)\s*\{?\s*$")  # of a root, a power
CUT_SHORT = re.compile(r"[eE.]\d|[:'√]\s?\d|\s+\d")  # it goes on in a way that is not understood


def first_number(statement: str) -> str | None:
    """The number that a statement gives: its first, or of a calculation the result."""
    statement = first_sentence(statement[:LONGEST_STATEMENT])
    if not statement.strip().isdecimal():  # the usual case is fast
        for pattern, plain in SIMPLER:
            statement = pattern.sub(plain, statement)
    sides = statement.split("=")
    for side in reversed(sides):  # 72 = 12 * 6 and 12 * 6 = 72
        match = NUMBER.search(side)
        if match and not is_calculation(side, match):
            return spell_match(side, match)
    if re.search(r"\d-\d", sides[-1]):  # a range, or a date
        return None
    return normalize_number(normalize_formula(sides[-1].strip(" $")) or "")


def is_calculation(side: str, number: re.Match) -> bool:
    """Whether a number is part of one: followed by an operation, or inside a root or a power."""
    return bool(CALCULATION.match(side, number.end()) or INSIDE.search(side[: number.start()]))


def spell_match(side: str, match: re.Match) -> str | None:
    if CUT_SHORT.match(side, match.end()):
        return None
    digits = match["digits"].replace(",", "")
    if len(digits) > LONGEST_NUMBER:
        return None
    value = Fraction(digits)
    if match["below"]:
        below = Fraction(match["below"].replace(",", ""))
        if below == 0:
            return None
        if match["whole"] and value >= below:  # 7 5/2 is no mixed number
            return None
        value = value / below + int(match["whole"] or 0)
    for power in (match["exponent"], match["ten"]):
        value *= Fraction(10) ** int(power or 0)
    for word in match["words"].split():
        value *= POWERS[word.removesuffix("s")]
    if "-" in match["sign"] + match["sign2"]:
        value = -value
    return spell(value)


def normalize_number(text: str) -> str | None:
    """One spelling per value, to six decimals: "$1,000.50" → "1000.5", "3/4" → "0.75", or None."""
    digits = re.sub(r"[\s,$\\+]", "", text).replace("−", "-").replace("–", "-")
    if not digits or len(digits) > LONGEST_NUMBER:
        return None
    numerator, _, denominator = digits.partition("/")
    try:
        return spell(Fraction(numerator) / Fraction(denominator or 1))
    except (ValueError, ZeroDivisionError):
        return None


def spell(value: Fraction) -> str | None:
    millionths = round(value * 10**6)
    whole, decimals = divmod(abs(millionths), 10**6)
    sign = "-" if millionths < 0 else ""
    text = sign + f"{whole}.{decimals:06d}".rstrip("0").rstrip(".")
    return text if len(text) <= LONGEST_NUMBER else None
