"""Read the number in the final answer of a word problem into one spelling per value."""

import re
from fractions import Fraction

NUMBER = re.compile(
    r"[-−–+]?\s?\\?\$?\s?[-−–]?\s?"  # -18  $18  -$18  $-18
    r"(?=\.?\d)(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)?(?:\.\d++)?"  # 1,000  18.50  .5
    r"(?:\s?/\s?\d++)?+"  # 3/4
)
MIXED = re.compile(
    r"(?<![\d.,/])(\d{1,9})"
    r"(?:\s?\\[dt]?frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}"  # 2\frac{1}{2}
    r"| (\d{1,9})/(\d{1,9})(?!\d))"  # 2 1/2
)
PLAIN_NUMBERS = [
    (re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!;: ])(?=\d{3})"), ""),  # 1{,}000  1,\!000  1\,000
    (re.compile(r"\\[dt]?frac\s?\{(-?\d++)\}\s?\{(\d++)\}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac(\d)(\d)"), r"\1/\2"),
    (re.compile(r"(?<=\d) \([^()]*\)"), ""),  # 42 (because 7 = 1 week)
]
LONGEST_NUMBER = 40  # characters; runaway digits must not cost quadratic time
LONGEST_STATEMENT = 1000


def first_number(statement: str) -> str | None:
    """The number that a statement gives: its first, or of a calculation that after the last `=`."""
    statement = re.split(r"\.\s", statement[:LONGEST_STATEMENT])[0]
    statement = MIXED.sub(mixed_number, statement)
    for pattern, plain in PLAIN_NUMBERS:
        statement = pattern.sub(plain, statement)
    before, _, after = statement.rpartition("=")
    if re.search(r"\d\s*[-+*/×÷]\s*\d", after) and NUMBER.search(before):  # 72 = 12 * 6
        after = before.rpartition("=")[2]
    found = NUMBER.search(after) or NUMBER.search(statement)
    return normalize_number(found.group()) if found else None


def mixed_number(match: re.Match) -> str:
    """2 1/2 and 2\\frac{1}{2} as 5/2; two numbers that are no mixed number stay."""
    whole, above, below = (int(group) for group in match.groups() if group)
    if not 0 < above < below:
        return match.group()
    return f"{whole * below + above}/{below}"


def normalize_number(text: str) -> str | None:
    """One spelling per value, to six decimals: "$1,000.50" → "1000.5", "3/4" → "0.75", or None."""
    digits = re.sub(r"[\s,$\\+]", "", text).replace("−", "-").replace("–", "-")
    if not digits or len(digits) > LONGEST_NUMBER:
        return None
    numerator, _, denominator = digits.partition("/")
    try:
        millionths = round(Fraction(numerator) / Fraction(denominator or 1) * 10**6)
    except (ValueError, ZeroDivisionError):
        return None
    whole, decimals = divmod(abs(millionths), 10**6)
    sign = "-" if millionths < 0 else ""
    return sign + f"{whole}.{decimals:06d}".rstrip("0").rstrip(".")
