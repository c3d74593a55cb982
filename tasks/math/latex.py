r"""From LaTeX as people write it to the plain text that formula.py reads.

Dropped are looks (fonts, sizes, spaces), and what carries no value (`$`, `%`, degrees, currencies).
What has several names gets one: `\dfrac`, `\tfrac` and `\frac`; `≤`, `\leq` and `<=`. Words stand
between two § in what comes out.
"""

import re
import unicodedata
from fractions import Fraction

END = r"(?![A-Za-z])"  # of a command's name
WORDS = re.compile(r"\\(?:text(?:rm|sf|normal|up)?|mbox|hbox|operatorname|mathrm)\s*\{([^{}]*)\}")
DRESS = re.compile(  # around the whole
    r"\$\$?([^$]*)\$\$?|\{([^{}]*)\}|\\\[(.*)\\\]|\\\((.*)\\\)|[“\"‘']([^“”\"‘’']*)[”\"’']"
    r"|\*\*([^*]*)\*\*|" + WORDS.pattern, re.DOTALL)
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "₀₁₂₃₄₅₆₇₈₉"
LEVEL = str.maketrans(RAISED + LOWERED, "0123456789+-0123456789")
VULGAR = re.compile(r"[¼-¾⅐-⅞]")
NUMBER_WORDS = "two three four five six seven eight nine ten eleven twelve".split()

LOOKS = [
    (r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}", " "),
    (r"\\(?:textbf|textit|emph|mathbf|mathit|mathsf|mathtt|boldsymbol|bm)" + END, " "),
    (r"\\(?:rm|bf|it|sf|tiny|small|normalsize|large|Large|LARGE|huge|Huge)" + END, " "),
    (r"\\(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lrm]?|q?quad)" + END, " "),
    (r"\\(?:begin|end)\s*\{(?:align|aligned|equation|gather|center)\*?\}", " "),
    (r"\\[lr]vert" + END, "|"),
    (r"\\\\\[[^\[\]]*\]|\\cr" + END, r"\\\\ "),  # the space between two rows
    (r"(?<!\\)\\[()\[\]]|\*\*(?=[^*]*\*\*)(?=\S)|(?<=\S)\*\*$", " "),
    (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\[,;: ]|~)\s*(?=\d{3})", ""),  # 1{,}000  1,\!000  1\,000
    (r"(?<!\\)\\[!,;: ]|~|\\phantom\s*\{-?\}", " "),
]
NO_VALUE = [
    (r"\\?\$|\\?%|[€£¥₹¢]|\\(?:pounds|euro|yen|textdollar)" + END, " "),
    (r"(?:\bRs\b\.?|\bUSD\b)\s*(?=§?\s*\d)", " "),
    (r"\^\s*\{?\s*\\circ\s*\}?(?:\s*[CF]" + END + r")?|°|\\degree" + END, " "),
    (r"(?<=\d)\s*\^\s*\{?\s*§?\s*o\s*§?\s*\}?" + END, " "),  # 90^o
    (r"(?<=\d)(?:\^\s*\{?\s*§?(?:st|nd|rd|th)§?\s*\}?|(?:st|nd|rd|th)\b)", ""),  # 12^{\text{th}}
    (r"§\s*§|(?:[.,;]|\\\\)\s*$|^\s*\\approx", " "),
    (r"^\s*§[^§]*(?:\bis|\bare|:|=)\s*§", " "),  # \text{Maximum value is }5
    (r"^[A-Za-z][A-Za-z ]{1,60}?(?:\b(?:is|are)\b|:)\s*(?=[-\\(\d.])", " "),
]
ONE_NAME = [
    (rf"\\[dtc](frac|binom){END}", r"\\\1 "),
    (rf"\\div{END}", "/"),
    (rf"\\varnothing{END}", r"\\emptyset "),
    (rf"\\(?:cdot|times){END}|[×·⋅]", "*"),
    (r"÷|⁄", "/"),
    (r"\*\*", "^"),
    (r"√", " sqrt "),
    (r"±", r"\\pm "),
    (r"≈", r"\\approx "),
    (r"∞", r"\\infty "),
    (rf"π|(?<![A-Za-z\\])pi{END}", r"\\pi "),
    (rf"(?<![A-Za-z\\])oo{END}", r"\\infty "),
    (rf"(?<=[\d*)])I{END}", "i"),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,2})(?![\w.])", r"\1*10^{\2}"),
    (rf"≤|\\le(?:q|qslant)?{END}", "<="),
    (rf"≥|\\ge(?:q|qslant)?{END}", ">="),
    (rf"≠|\\neq{END}", r"\\ne "),
    (r"∈", r"\\in "),
    (rf"\\lt{END}", "<"),
    (rf"\\gt{END}", ">"),
    (r"\\(sin|cos|tan)\s*\^\s*(?:\{\s*-\s*1\s*\}|-1)", r"\\arc\1 "),
    (r"\\(begin|end)\s*\{(?:[pbv]?matrix|array)\}(?:\{[clr|]*\})?", r"\\\1{matrix}"),
    (r"\(\s*(\\begin\{matrix\}.*\\end\{matrix\})\s*\)", r"\1"),  # whatever the brackets
    (r"\[\s*(\\begin\{matrix\}.*\\end\{matrix\})\s*\]", r"\1"),
    (r"§\s*,?\s*(and|or)\s*,?\s*§", r" \1 "),
    (r"\\frac\s*\{\s*§([^§]*)§\s*\}\s*\{\s*§([^§]*)§\s*\}", r"§\1/\2§"),  # 5 \frac{m}{s}
    (r"(?i)(?<=\d)\s*§?\s*\b([ap])\.?\s?m\b\.?\s*§?", lambda m: f" §{m[1].lower()}m§ "),
    (r"\((\d+)\)\s*_", r"\1_"),  # (123)_4
    (r"_\s*\{?\s*§\s*(?:base)?\s*§?\s*(\d+)\s*§?\s*\}?", r"_\1"),
    (r"_\s*\{?\s*§\s*(?:base )?\s*(" + "|".join(NUMBER_WORDS) + r")\s*§\s*\}?",
     lambda m: f"_{NUMBER_WORDS.index(m[1]) + 2}"),
    (r"(?<![\d.])(\d{1,9}) (\d{1,9})\s*/\s*(\d{1,9})(?![\d/])", lambda m: mixed_number(m)),
]
REWRITES = [(re.compile(pattern, re.DOTALL), new) for pattern, new in LOOKS + NO_VALUE + ONE_NAME]
REPEATING = re.compile(r"(\d*)\.(\d*)\s*\\(?:overline|bar|dot)\s*\{(\d{1,9})\}")
GOES_ON = re.compile(r"(\d*)\.(\d*?)(\d+?)\3{2,}\s*(?:\.\.\.|…|\\l?dots)")  # 0.333...
THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
UNIT = re.compile(  # behind a number: 5 cm, 5 km/h, 36 square feet; a longer word needs a blank
    r"(?:(?<=[\d})])|(?<=\\pi )) *"
    r"((?:(?:cm|mm|km|ft|kg|lb|oz|hr|mph|mi|sq)\b|m/s|"
    r"(?<= )(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|base|choose|and)\b)[A-Za-z]{3,}\.?)"
    r"(?: [A-Za-z]+\.?| ?\^ ?\{?[23]\}?|/[a-z]+)*)$"
)


def plain(text: str) -> str:
    """One text for all the ways to write a formula, with its words between two §."""
    text = GOES_ON.sub(repeating, undressed(text.replace("§", "")))
    text = unicodedata.normalize("NFKC", of_unicode(text))
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # a backslash doubled by JSON
    text = WORDS.sub(r" §\1§ ", text)
    for pattern, new in REWRITES:
        text = pattern.sub(new, text)
    text = REPEATING.sub(repeating, text)
    if not re.search(r"[\[(]|\\\{", text):  # in (1,234) the comma separates
        text = THOUSANDS.sub(lambda number: number[1].replace(",", ""), text)
    return UNIT.sub(r" §\1§", " ".join(text.split()))


def undressed(text: str) -> str:
    """Without what stands around the whole: dollars, braces, quotes, \\text{…}."""
    text = text.strip()
    while match := DRESS.fullmatch(text):
        text = next(filter(None, match.groups()), "").strip()
    return text


def of_unicode(text: str) -> str:
    """Raised and lowered digits and signs in TeX, 3½ as 3 1/2."""
    text = re.sub(f"[{RAISED}]+", lambda run: f"^{{{run[0].translate(LEVEL)}}}", text)
    text = re.sub(f"[{LOWERED}]+", lambda run: f"_{{{run[0].translate(LEVEL)}}}", text)
    text = VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]), text)
    return re.sub("[−–]", "-", text.replace("⁄", "/"))


def mixed_number(match: re.Match) -> str:
    """2 1/2 as 2 + 1/2; two numbers that are no mixed number stay."""
    whole, above, below = map(int, match.groups())
    return f"({whole}+{above}/{below})" if 0 < above < below else match[0]


def repeating(decimal: re.Match) -> str:
    r"""0.1\overline{6} as the fraction that it is."""
    whole, fixed, period = decimal.groups()
    digits = int(whole + fixed + period) - int("0" + whole + fixed)
    return f"({Fraction(digits, 10 ** len(fixed) * (10 ** len(period) - 1))})"
