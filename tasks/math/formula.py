r"""One spelling per value for the final answers of MATH: `\dfrac12`, `0.5` and `1/2` are `1/2`.

In the tradition of the benchmark's own normalization (Hendrycks et al., arXiv 2103.03874), but read
token by token instead of rewritten by patterns: a formula is understood to its last token, or it is
compared as it stands. Numbers are worked out (fractions, roots, i, with π as a name). With letters
no algebra is done beyond sorting sums and products: an expanded polynomial differs from a factored
one. When in doubt two spellings are two answers.
"""

import math
import re
from functools import lru_cache

from tasks.math.latex import plain
from tasks.math.values import Sum, Unreadable, both_signs, name, number, root

LONGEST_FORMULA = 400  # characters; the longest gold answer of MATH has 159
LETTER_UNITS = "m g s h L N J W V A C F K".split()  # as \text{m}; another letter is a name
NO_UNITS = set(  # these change the value
    "am pm dozen hundred thousand million billion trillion half halves third thirds quarter "
    "quarters fifths tenths hundredths thousandths".split()
)
TOKEN = re.compile(
    r"§[^§]*§|\\(?:begin|end)\{matrix\}|\\[A-Za-z]+|\\.|[<>]=|\d+(?:\.\d+)?|\.\d+|[A-Za-z]+|\S",
    re.DOTALL,
)
SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}  # what each is from the other side
RELATIONS = ("=", *SWAPPED, ":", r"\in", r"\cup", r"\cap", r"\ne", r"\approx", r"\to")
SEPARATORS = (",", ";", "and", "or")
ENDS = ("", ")", "]", "}", r"\}", "|", "&", r"\\", r"\end{matrix}", *SEPARATORS, *RELATIONS)
SIGNS = ("+", "-", r"\pm")
NAMES = ["\\" + word for word in (  # another command would be sorted past its operands
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "pi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega "
    "infty emptyset ell overline bar vec hat widehat tilde angle triangle mathbb mathcal pm square "
).split()]
FUNCTIONS = r"\sin \cos \tan \cot \sec \csc \log \ln \exp \arcsin \arccos \arctan".split()
APPLIED = "f g h p F G P Q".split()  # f(x) is no product
LONE = re.compile(  # names what an equation is about: x, x_1, AB, f(x), (x,y), \theta, Area
    r"[A-Za-z](\*[A-Za-z])?(_\(\w+\))?|[A-Za-z]{3,}(\*\\angle)?|[fghp]\([a-z]\)"
    r"|\([A-Za-z](,[A-Za-z])+\)|\\[a-z]+"
)
BRACKETS = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",)}


@lru_cache(maxsize=10_000)
def normalize_formula(text: str) -> str | None:
    """The one spelling of a final answer in LaTeX or plain text; None if there is nothing to read.

    A list keeps no order (a set's braces are dropped), a tuple or an interval keeps order and
    brackets. Units, degrees, percent and currencies are dropped, and so is `x =`. What is no
    formula stands as it is, without its blanks. A text of over LONGEST_FORMULA is not read.
    """
    seen = set()
    while text and len(text) <= LONGEST_FORMULA and text not in seen:  # until nothing changes
        seen.add(text)
        text = spell(text)
    return text if text in seen else None


def spell(text: str) -> str:
    """What one reading makes of it; empty if there is nothing to read."""
    text = plain(text)
    words = re.sub(r"[§ ]+", " ", text).strip()
    if re.fullmatch(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*", words) and is_prose(words):
        return words.replace(" ", "").lower()
    if re.fullmatch(r"§[^§]*§", text) or re.fullmatch(r"\( ?[A-Z] ?\)", words):
        return re.sub(r"[§ ()]", "", text)
    if re.fullmatch(r"\d{1,4}([-/])\d{1,2}\1\d{2,4}", text):  # a date
        return text
    try:
        return ";".join(sorted(Formula(text).whole()))
    except (Unreadable, ValueError):  # ValueError: a number of more digits than Python converts
        return value_of_calculation(text) or as_written(text)


def is_prose(words: str) -> bool:
    """Whether these letters are words: AB is not ab, and `x and y` is a list."""
    return any(len(word) > 2 and word not in SEPARATORS for word in re.split("[ '-]", words))


def value_of_calculation(text: str) -> str | None:
    r"""The number behind the last `=` of what is not understood: \gcd(12, 18) = 6."""
    left, _, right = text.rpartition("=")
    if not re.search(r"\\[a-z]|§", left) or re.search(r"[<>]|\bor\b", left):
        return None
    try:
        [item] = Formula(right).items()
    except (Unreadable, ValueError):
        return None
    return str(item) if item.is_numeric() else None


def as_written(text: str) -> str:
    """Without the blanks that mean nothing; 2 3 is not 23."""
    text = re.sub(r"\s*§\s*([^§]*?)\s*§\s*", r"\\text{\1}", text)
    text = re.sub(r"(?<![A-Za-z0-9.,]) | (?![A-Za-z0-9])", "", text)
    return text.replace(" ", "~")


# --------------------------------------------------------------------------------------------
# The reader


class Formula:
    """Reads by recursive descent: every token is understood or the formula is Unreadable."""

    def __init__(self, text: str):
        self.tokens = TOKEN.findall(text)[::-1]  # a stack, the next token last
        self.depth = 0

    def next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, *wanted: str) -> str:
        """The next token if it is wanted, else nothing."""
        return self.tokens.pop() if self.tokens and self.tokens[-1] in wanted else ""

    def need(self, *wanted: str) -> str:
        token = self.take(*wanted)
        if not token:
            raise Unreadable
        return token

    def whole(self) -> list[str]:
        if self.next() == r"\{" and self.tokens[0] == r"\}" and self.tokens.count(r"\{") == 1:
            self.tokens = self.tokens[1:-1]  # a set is a list
        items = self.items()
        if self.tokens:
            raise Unreadable
        return [str(item) for item in items]

    def items(self) -> list[Sum]:
        """A list. `x = 2, x = 3` is 2, 3, but `x = 2, y = 3` keeps its names; ±2 is 2, -2."""
        found, words = [self.relation()], set()
        while token := self.take(*SEPARATORS):
            words.add(token)
            while token := self.take(*SEPARATORS):  # ", and"
                words.add(token)
            found.append(self.relation())
        if words & {"and", "or"} and any(re.search("[<>]|infty", str(item)) for _, item in found):
            raise Unreadable  # `and` is not `or` between inequalities
        if len({left or found[0][0] for left, _ in found}) > 1:
            return [name(f"{left}={item}") if left else item for left, item in found]
        return [value for _, item in found for value in both_signs(item)]

    def relation(self) -> tuple[str, Sum]:
        r"""Sums with relations between them: what it is about, and the value: ("x", 2) of x = 2."""
        sides, signs = [self.sum()], []
        while sign := self.take(*RELATIONS):
            side = self.sum()
            if sign == r"\approx" and not is_variable(sides[-1]):
                continue  # √2 ≈ 1.41
            if sign == "=" and str(side) == str(sides[-1]):  # 2 + 3 = 5
                continue
            signs.append(sign)
            sides.append(side)
        if not signs:
            return "", sides[0]
        return equation(sides, signs) or interval(sides, signs) or ("", chain(sides, signs))

    def sum(self) -> Sum:
        total = self.signed()
        while self.next() in SIGNS:
            total += self.signed()
        return total

    def signed(self) -> Sum:
        sign = number(1)
        while token := self.take(*SIGNS):
            sign *= {"+": number(1), "-": number(-1), r"\pm": name(r"\pm")}[token]
        return sign * self.term()

    def term(self) -> Sum:
        r"""A product, with or without signs. `1\frac23` is a mixed number; words are a unit."""
        first = self.next()
        total = self.factor()
        last = ")" if self.raised else first
        while (token := self.next()) not in ENDS and token not in SIGNS:
            if self.take("*"):
                total *= self.factor()
            elif self.take("/"):
                total *= self.factor().inverse()
            elif self.at_unit():
                self.unit()
            elif token[0] in ".0123456789" and (last[-1].isalnum() and last[0] != "\\"):
                raise Unreadable  # neither 2 3 nor x2 is a product
            else:
                part = self.factor()
                fraction = token == r"\frac" and 0 < (part.rational() or 0) < 1
                mixed = last == first and first.isdigit() and fraction
                total = total + part if mixed else total * part
            last = ")" if self.raised else token
        return total

    def at_unit(self) -> bool:
        r"""Whether words follow: not a letter in upright type, as in 2\mathrm{i}."""
        word = self.next().strip("§ ")
        return self.next()[:1] == "§" and (len(word) > 1 or word in LETTER_UNITS)

    def unit(self) -> None:
        """Drop the words that end a quantity, and their power: 45 units^2, 5 m/s."""
        while self.at_unit() or self.next() == "/" and "§" in "".join(self.tokens[-2:-1]):
            word = self.tokens.pop().lower().replace(".", "")
            if NO_UNITS.intersection(re.findall(r"[a-z]+", word)):
                raise Unreadable
            if self.take("^"):
                self.argument()
        if self.next() not in ENDS:
            raise Unreadable

    def factor(self) -> Sum:
        self.raised = False
        if self.take("-"):
            return number(-1) * self.factor()
        base, raised = self.atom(), False
        while token := self.take("^", "!"):
            raised = True
            n = base.rational()
            if token == "^":
                base = base.power(self.argument())
            elif n is not None and n.denominator == 1 and 0 <= n <= 20:
                base = number(math.factorial(int(n)))
            else:
                base = name(base.factor() + "!")
        self.raised = raised
        return base

    def argument(self, first_digit: bool = False) -> Sum:
        r"""A group or the next atom; of a number perhaps its first digit, as TeX reads \frac12."""
        token = self.next()
        if first_digit and token.isdigit() and len(token) > 1:
            self.tokens[-1] = token[1:]
            return number(token[0])
        return number(-1) * self.atom() if self.take("-") else self.atom()

    def atom(self) -> Sum:
        self.depth += 1
        if self.depth > 40 or self.next() in (*set(ENDS) - {"|"}, "*", "/", "^", "_", "!"):
            raise Unreadable
        found = self.opened(self.tokens.pop())
        self.depth -= 1
        return found

    def opened(self, token: str) -> Sum:
        """The atom that begins with `token`, which is taken already."""
        if token[0] == "§":
            word = token.strip("§").replace(" ", "")
            if word.isalpha():
                return self.named(word)
            self.tokens += TOKEN.findall(word)[::-1]
            return self.atom()
        if token[-1].isdigit():
            return self.named(token) if self.next() == "_" else number(token)  # 12_5 is a name
        if token == "{":
            inside = self.sum()
            self.need("}")
            return inside
        if token == "|":
            inside = self.sum()
            self.need("|")
            return name(f"|{inside}|")
        if token in BRACKETS:
            return self.bracket(token)
        if token == r"\begin{matrix}":
            return self.matrix()
        if token in (r"\frac", r"\binom", r"\sqrt", "sqrt") or token in FUNCTIONS:
            return self.command(token)
        if token in ("to", "in", "is", "of", "at", "by", "if", "no", "am", "pm"):
            raise Unreadable  # words, no products
        if token.isalpha() and len(token) == 2:  # xy is a product, longer words are names
            self.tokens.append(token[1])
            token = token[0]
        if len(token) == 1 and token.isascii() and token.isalpha():
            return self.letter(token)
        if not (re.fullmatch(r"[A-Za-z]+|[α-ωΑ-Ω]", token) or token in NAMES):
            raise Unreadable
        if token[0] == "\\" and self.next() == "{":
            token = f"{token}{{{self.argument()}}}"
            if self.next() == "{":  # a command of two arguments
                raise Unreadable
        return self.named(token)

    def letter(self, token: str) -> Sum:
        """A letter. f(2) and P(0) are no products, f^{-1}(3) is no power; x(x + 1) is a product."""
        if token in APPLIED and self.next() == "^" and "(" in self.tokens:
            self.take("^")
            exponent = self.argument()
            if self.next() != "(":
                return name(token).power(exponent)
            return name(f"{token}^({exponent})({self.arguments()})")
        if self.next() != "(":
            return self.named(token)
        before = list(self.tokens)
        arguments = self.arguments()
        if token in APPLIED or not re.search(r"[A-Za-z]", arguments) or "=" in arguments:
            return name(f"{token}({arguments})")
        self.tokens = before
        return name(token)

    def arguments(self) -> str:
        self.need("(")
        found = [self.relation()]
        while self.take(","):
            found.append(self.relation())
        self.need(")")
        return ",".join(f"{left}={item}" if left else str(item) for left, item in found)

    def bracket(self, token: str) -> Sum:
        items = self.items()
        close = self.need(*BRACKETS[token])
        if len(items) == 1 and token + close == "()":
            return items[0]
        texts = [str(item) for item in items]
        if token == r"\{":
            return name(rf"\{{{';'.join(sorted(texts))}\}}")
        return name(token + ",".join(texts) + close)

    def command(self, token: str) -> Sum:
        if token == r"\frac":
            above = self.argument(first_digit=True)
            return above * self.argument(first_digit=True).inverse()
        if token == r"\binom":
            n, k = self.argument(first_digit=True), self.argument(first_digit=True)
            whole = [x.rational() for x in (n, k)]
            if all(x is not None and x.denominator == 1 and 0 <= x <= 60 for x in whole):
                return number(math.comb(*map(int, whole)))
            return name(rf"\binom{{{n}}}{{{k}}}")
        if token in (r"\sqrt", "sqrt"):
            degree = number(2)
            if self.take("["):
                degree = self.sum()
                self.need("]")
            inside = self.argument(first_digit=token == r"\sqrt")  # plain √12 is the root of 12
            n = degree.rational()
            if n is None or n.denominator != 1:
                return name(rf"\sqrt[{degree}]{{{inside}}}")
            return root(inside, int(n))
        below = f"_({self.argument()})" if self.take("_") else ""
        power = f"^({self.argument()})" if self.take("^") else ""
        return name(f"{token}{below}{power}({self.inside()})")

    def inside(self) -> Sum:
        r"""The argument of a function: a bracket, or all behind it: \sin 2x is the sine of 2x."""
        if self.next() == "(":
            return self.atom()
        total = self.factor()
        while self.next() not in (*ENDS, *SIGNS, *FUNCTIONS, "(", "*", "/") and not self.at_unit():
            total *= self.factor()
        return total

    def named(self, text: str) -> Sum:
        return name(f"{text}_({self.argument()})" if self.take("_") else text)

    def matrix(self) -> Sum:
        rows = [[str(self.sum())]]
        while token := self.take("&", r"\\"):
            if token == "&":
                rows[-1].append(str(self.sum()))
            elif self.next() != r"\end{matrix}":
                rows.append([str(self.sum())])
        self.need(r"\end{matrix}")
        cells = r"\\".join("&".join(row) for row in rows)
        return name(rf"\begin{{matrix}}{cells}\end{{matrix}}")


# --------------------------------------------------------------------------------------------
# Relations


def is_variable(side: Sum) -> bool:
    return bool(LONE.fullmatch(str(side))) and not side.is_numeric()


def equation(sides: list[Sum], signs: list[str]) -> tuple[str, Sum] | None:
    r"""`x = 2`, `2 = x`, `|AB| = 5` and `x \in [0, 1)` are about what they name."""
    if len(signs) != 1 or signs[0] not in ("=", r"\in", r"\approx"):
        return None
    left, right = sides
    if is_variable(left) or signs == ["="] and left.is_name() and right.is_numeric():
        return str(left), right
    if signs == ["="] and is_variable(right):
        return str(right), left
    return None


def interval(sides: list[Sum], signs: list[str]) -> tuple[str, Sum] | None:
    """`x < 5`, `5 > x` and `0 <= x < 1` as the interval in which x is."""
    if all(sign in (">", ">=") for sign in signs):
        sides, signs = sides[::-1], [SWAPPED[sign] for sign in reversed(signs)]
    if not all(sign in ("<", "<=") for sign in signs):
        return None
    opening = "[" if signs[0] == "<=" else "("
    closing = "]" if signs[-1] == "<=" else ")"
    if len(signs) == 2 and is_variable(sides[1]):
        return str(sides[1]), name(f"{opening}{sides[0]},{sides[2]}{closing}")
    if len(signs) == 1 and is_variable(sides[0]) and sides[1].is_numeric():
        return str(sides[0]), name(rf"(-\infty,{sides[1]}{closing}")
    if len(signs) == 1 and is_variable(sides[1]) and sides[0].is_numeric():
        return str(sides[1]), name(rf"{opening}{sides[0]},\infty)")
    return None


def chain(sides: list[Sum], signs: list[str]) -> Sum:
    """Any other relation, from the smaller to the larger; 0 = 2x + y as 2x + y = 0."""
    backwards = all(sign in (">", ">=") for sign in signs)
    if backwards or signs == ["="] and sides[0].is_numeric():
        sides, signs = sides[::-1], [SWAPPED.get(sign, sign) for sign in reversed(signs)]
    texts = [str(side) for side in sides]
    if set(signs) == {r"\cup"}:
        return name(r"\cup ".join(sorted(texts)))
    out = texts[0]
    for sign, text in zip(signs, texts[1:]):
        out += sign + (" " if sign.startswith("\\") else "") + text
    return name(out)
