r"""Read the LaTeX of a final answer into one spelling per value: `\dfrac12`, `\frac{1}{2}`, `0.5` and `1/2` are `1/2`.

In the tradition of the MATH benchmark's own normalisation (Hendrycks et al., arXiv 2103.03874), but read token by token
instead of rewritten by patterns, so that no character is lost on the way: a formula is understood to its last token,
or it is compared as it stands. Numbers are worked out (fractions, square roots, i, with π as a name); with letters no
algebra is done beyond sorting sums and products: an expanded polynomial differs from a factored one.
"""

import re
from fractions import Fraction
from functools import lru_cache

LONGEST_FORMULA = 400  # characters; the longest gold answer of MATH has 159
MOST_TERMS = 64  # of a product that is multiplied out: (1 + √2)(1 + √3)… doubles with every factor
WORDS = re.compile(r"\\(?:text[a-z]*|mbox|hbox|operatorname|mathrm)\s*\{([^{}]*)\}")
FONTS = re.compile(r"\\(?:textbf|textit|mathbf|mathit|mathsf|boldsymbol|bm|emph)\s*\{([^{}]*)\}")
END = r"(?![A-Za-z])"  # of a command's name
TYPOGRAPHY = [(re.compile(pattern), plain) for pattern, plain in [
    # looks alone
    (r"\\\\\[[^\[\]]*\]|\\cr" + END, r"\\\\ "),  # the space between two rows
    (r"(?<!\\)\\[()\[\]]", " "),  # \( … \)
    (r"(?<=\d)\s*(?:\{,\}|,\s*\\!|\\[,;: ]|~)\s*(?=\d{3})", ""),  # thousands: 1{,}000  1,\!000  1\,000
    (rf"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|q?quad){END}|(?<!\\)\\[!,;: ]|~|\\phantom\s*\{{?-?\}}?", " "),
    # signs that carry no value
    (rf"\\?\$|\\?%|\^\s*\{{?\s*\\circ\s*\}}?(?:\s*[CF]{END})?|°|\\degree{END}|(?:[.,;]|\\\\)\s*$|^\s*\\approx", " "),
    (r"(?<=\d)(?:\^\s*\{?\s*§?(?:st|nd|rd|th)§?\s*\}?|(?:st|nd|rd|th)\b)", ""),  # 12^{\text{th}}
    # other names of the same
    (rf"\\[dtc](frac|binom){END}", r"\\\1 "), (rf"\\div{END}", "/"), (rf"\\varnothing{END}", r"\\emptyset "),
    (rf"\\(?:cdot|times){END}", "*"), (r"\*\*", "^"), ("[−–]", "-"), ("²", "^2"), ("³", "^3"),
    ("√", " sqrt "), ("∞", r"\\infty "),
    (rf"π|(?<![A-Za-z\\])pi{END}", r"\\pi "), (rf"(?<![A-Za-z\\])oo{END}", r"\\infty "), (rf"(?<=[\d*)])I{END}", "i"),
    (r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,2})(?![\w.])", r"\1*10^{\2}"),
    (rf"≤|\\le(?:q|qslant)?{END}", "<="), (rf"≥|\\ge(?:q|qslant)?{END}", ">="), (rf"\\neq{END}", r"\\ne "),
    (rf"\\lt{END}", "<"), (rf"\\gt{END}", ">"),
    (r"\\(begin|end)\s*\{(?:[pb]?matrix|array)\}(?:\{[clr|]*\})?", r"\\\1{matrix}"),  # whatever the brackets
    (r"\(\s*(\\begin\{matrix\}.*\\end\{matrix\})\s*\)|\[\s*(\\begin\{matrix\}.*\\end\{matrix\})\s*\]", r"\1\2"),
    (r"§\s*,?\s*(?:and|or)\s*,?\s*§", ",")]]
REPEATING = re.compile(r"(\d*)\.(\d*)\s*\\(?:overline|bar)\s*\{(\d{1,9})\}")
UNIT = re.compile(  # behind a number: 5 cm, 5 km/h, 36 square feet; a longer word needs a blank before it
    r"(?:(?<=[\d})])|(?<=\\pi )) *((?:(?:cm|mm|km|ft|kg|lb|oz|hr|mph|mi)\b|m/s|"
    r"(?<= )(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod|base|choose|and)\b)[A-Za-z]{3,}\.?)"
    r"(?: [A-Za-z]+\.?| ?\^ ?\{?[23]\}?|/[a-z]+)*)$")
LETTER_UNITS = "m g s h L N J W V A C F K".split()  # as \text{m}; any other single letter is a name
NO_UNITS = ("am pm dozen hundred thousand million billion trillion half halves third thirds quarter quarters fifths "
            "tenths hundredths thousandths").split()  # these change the value
THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")
TOKEN = re.compile(r"§[^§]*§|\\(?:begin|end)\{matrix\}|\\[A-Za-z]+|\\.|[<>]=|\d+(?:\.\d+)?|\.\d+|[A-Za-z]+|\S", re.S)
RELATIONS = ("=", "<", ">", "<=", ">=", ":", r"\in", r"\cup", r"\cap", r"\ne", r"\neq", r"\approx", r"\to")
SEPARATORS = (",", ";", "and", "or")
ENDS = ("", ")", "]", "}", r"\}", "&", r"\\", r"\end{matrix}", *SEPARATORS, *RELATIONS)
SIGNS = ("+", "-", r"\pm")
NAMES = tuple("\\" + word for word in (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega infty emptyset ell overline bar vec hat "
    "widehat tilde angle triangle mathbb mathcal pm").split())  # another command would be sorted past its operands
FUNCTIONS = tuple(r"\sin \cos \tan \cot \sec \csc \log \ln \exp \arcsin \arccos \arctan".split())
LONE = re.compile(  # what stands left of the answer in `x = 2`: x, x_1, AB, f(x), (x,y), \\theta, Area, \\angle ABC
    r"[A-Za-z](\*[A-Za-z])?(_\(\w+\))?|[A-Za-z]{3,}(\*\\angle)?|[fghp]\([a-z]\)|\([A-Za-z](,[A-Za-z])+\)|\\[a-z]+")
BRACKETS = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",)}


@lru_cache(maxsize=10_000)
def normalize_formula(text: str) -> str | None:
    """The one spelling of a final answer in LaTeX or plain text; None if there is nothing, or too much, to read.

    A list keeps no order (a set's braces are dropped), a tuple or an interval keeps order and brackets. Units, degrees,
    percent and dollar signs are dropped, and so is `x =`. What is no formula stands as it is, without its blanks.
    """
    seen = set()
    while text and len(text) <= LONGEST_FORMULA and text not in seen:  # until a second reading changes nothing
        seen.add(text)
        text = spelling(text)
    return text if text in seen else None


def spelling(text: str) -> str:
    """What one reading makes of it; empty if there is nothing to read."""
    text = text.strip()
    while bare := WORDS.fullmatch(text) or re.fullmatch(r"\$([^$]*)\$|\{([^{}]*)\}", text):
        text = next(filter(None, bare.groups()), "").strip()
    text = WORDS.sub(r" §\1§ ", FONTS.sub(r" \1 ", text.replace("§", "")))  # §…§ marks words
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # a backslash doubled by JSON
    for pattern, plain in TYPOGRAPHY:
        text = pattern.sub(plain, text)
    text = REPEATING.sub(repeating, text)
    if not re.search(r"[\[(]|\\\{", text):  # in (1,234) the comma separates
        text = THOUSANDS.sub(lambda number: number[1].replace(",", ""), text)
    text = UNIT.sub(r" §\1§", " ".join(text.split()))
    if re.fullmatch(r"[A-Za-z]{3,}(?:[ '-][A-Za-z]+)*|§[^§]*§", text):  # words alone; AB is not ab
        text = re.sub(r"[\s§]", "", text)
        return text.lower() if len(text) > 2 else text
    try:
        items = Formula(text).whole()
    except (Unreadable, ValueError):  # ValueError: a number of more digits than Python converts
        text = re.sub(r"(?<![A-Za-z0-9.,]) | (?![A-Za-z0-9])", "", text.replace("§", ""))
        return text.replace(" ", "~")  # TeX's blank: 2 3 is not 23
    if len(items) == 1 and re.fullmatch(r"\\\{[^{}]*\\\}", items[0]):
        return items[0][2:-2]
    return ";".join(sorted(items))


def repeating(decimal: re.Match) -> str:
    r"""0.1\overline{6} as the fraction that it is."""
    whole, fixed, period = decimal.groups()
    value = Fraction(int(whole + fixed + period) - int("0" + whole + fixed), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"({value})"


class Unreadable(Exception):
    """Not a formula of the kinds that answers are made of."""


class Sum:
    """A sum of products, {sorted factors: rational coefficient}: the form in which equal values look alike."""

    def __init__(self, terms: dict[tuple[str, ...], Fraction]):
        self.terms = {factors: c for factors, c in terms.items() if c}

    def rational(self) -> Fraction | None:
        return self.terms.get((), Fraction(0)) if self.terms.keys() <= {()} else None

    def numeric(self) -> bool:
        return all(f == "i" or f.startswith((r"\pi", r"\sqrt")) for factors in self.terms for f in factors)

    def __str__(self) -> str:
        out = ""
        for factors, c in sorted(self.terms.items()) or [((), Fraction(0))]:
            powers = [POWER.fullmatch(f) for f in factors]
            above = [f for f, power in zip(factors, powers) if not power or int(power[2]) > 0]
            below = [raised(power[1], -int(power[2])) for power in powers if power and int(power[2]) < 0]
            above = [str(abs(c.numerator))] * (abs(c.numerator) != 1 or not above) + above
            below = [str(c.denominator)] * (c.denominator != 1) + below
            out += ("-" if c < 0 else "+" if out else "") + "*".join(above)
            out += f"/({'*'.join(below)})" if len(below) > 1 else "".join(f"/{f}" for f in below)
        return out

    def factor(self) -> str:
        """As one factor of a product: in brackets unless it is one already."""
        [*factors] = self.terms
        single = len(factors) == 1 and len(factors[0]) == 1 and self.terms[factors[0]] == 1
        return factors[0][0] if single else f"({self})"

    def __add__(self, other: "Sum") -> "Sum":
        return Sum({f: self.terms.get(f, Fraction(0)) + other.terms.get(f, 0) for f in self.terms | other.terms})

    def __mul__(self, other: "Sum") -> "Sum":
        sides = [self, other]
        if len(self.terms) * len(other.terms) > MOST_TERMS:
            raise Unreadable
        plain = self.rational() is not None or other.rational() is not None or self.numeric() and other.numeric()
        if not plain:  # with letters, a product of sums stays one
            sides = [side if len(side.terms) <= 1 else name(f"({side})") for side in sides]
        total = Sum({})
        for a, x in sides[0].terms.items():
            for b, y in sides[1].terms.items():
                total += product(a + b, x * y)
        return total

    def inverse(self) -> "Sum":
        if not self.terms:
            raise Unreadable
        if len(self.terms) > 1:
            return name(f"({self})^(-1)")
        [(factors, c)] = self.terms.items()
        total = number(1 / c)
        for f in factors:
            power = POWER.fullmatch(f)
            if radicand(f):  # 1/√n = √n/n
                total *= Sum({(f,): Fraction(1, radicand(f))})
            else:
                total *= name(raised(power[1], -int(power[2])) if power else f + "^(-1)")
        return total

    def power(self, exponent: "Sum") -> "Sum":
        e, base = exponent.rational(), self.rational()
        if e == -1:
            return self.inverse()
        if e is not None and e.numerator == 1 and 1 < e.denominator < 10:
            return root(self, str(e.denominator))
        if e is not None and e.denominator == 1:
            if base and abs(e) * max(base.numerator.bit_length(), base.denominator.bit_length()) < 2000:
                return number(base ** int(e))
            if self.numeric() and 1 <= e <= 8:
                return self if e == 1 else self * self.power(number(e - 1))
        return self if e == 1 else name(f"{self.factor()}^({exponent})")


def number(value: Fraction | int | str) -> Sum:
    """A long decimal is what a program prints of a fraction: 0.3333333333333333 is 1/3."""
    exact = Fraction(value)
    if isinstance(value, str) and len(value.partition(".")[2]) >= 8:
        near = exact.limit_denominator(1000)
        exact = near if abs(near - exact) < Fraction(1, 10**8) else exact
    return Sum({(): exact})


def name(text: str) -> Sum:
    return Sum({(text,): Fraction(1)})


POWER = re.compile(r"(.+)\^\((-?\d+)\)", re.S)


def raised(base: str, exponent: int) -> str:
    return base if exponent == 1 else f"{base}^({exponent})"


def radicand(factor: str) -> int:
    """n of the factor √n of a whole number, else 0."""
    inside = re.fullmatch(r"\\sqrt\{(\d+)\}", factor)
    return int(inside[1]) if inside else 0


def product(factors: tuple[str, ...], c: Fraction) -> Sum:
    """√a·√b = √(ab), without its square divisors, i·i = -1 and x·x = x²; the other factors are only sorted."""
    inside, exponents = 1, {}
    for f in factors:
        power = POWER.fullmatch(f)
        if radicand(f):
            inside *= radicand(f)
        elif f != "i":
            base, exponent = (power[1], int(power[2])) if power else (f, 1)
            exponents[base] = exponents.get(base, 0) + exponent
    for divisor in range(2, 1000):
        while inside % divisor**2 == 0:
            inside, c = inside // divisor**2, c * divisor
    imaginary = factors.count("i")
    rest = [raised(base, exponent) for base, exponent in exponents.items() if exponent]
    rest += [rf"\sqrt{{{inside}}}"] * (inside != 1) + ["i"] * (imaginary % 2)
    return Sum({tuple(sorted(rest)): c * (-1) ** (imaginary // 2)})


def root(inside: Sum, degree: str = "2") -> Sum:
    """Of a rational number exactly where that can be: √(p/q) = √(pq)/q, ∛8 = 2."""
    value = inside.rational()
    if value is not None and degree.isdigit() and 1 < int(degree) < 10:
        above, below = whole_root(abs(value.numerator), int(degree)), whole_root(value.denominator, int(degree))
        if above is not None and below and (value >= 0 or int(degree) % 2):
            return number(Fraction(above, below) * (1 if value >= 0 else -1))
    if degree != "2":
        return name(rf"\sqrt[{degree}]{{{inside}}}")
    if value is None:
        return name(rf"\sqrt{{{inside}}}")
    if value < 0:
        return root(number(-value)) * name("i")
    return product((rf"\sqrt{{{value.numerator * value.denominator}}}",), Fraction(1, value.denominator))


def whole_root(n: int, degree: int) -> int | None:
    """The whole number whose power is n; only looked for where a float is sure."""
    near = round(n ** (1 / degree)) if n < 10**15 else 0
    return near if near**degree == n else None


class Formula:
    """A reader by recursive descent: every token is understood or the formula is Unreadable, none is skipped."""

    def __init__(self, text: str):
        self.tokens = TOKEN.findall(text)[::-1]  # a stack, the next token last
        self.depth = 0

    def next(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self, *wanted: str) -> str:
        """The next token if it is wanted, else nothing."""
        return self.tokens.pop() if self.tokens and self.tokens[-1] in wanted else ""

    def need(self, *wanted: str) -> str:
        if not (token := self.take(*wanted)):
            raise Unreadable
        return token

    def whole(self) -> list[str]:
        items = [str(item) for item in self.items()]
        if self.tokens:
            raise Unreadable
        return items

    def items(self) -> list[Sum]:
        """A list: 1, 2 and 3. `x = 2, x = 3` and `x = 2, 3` are the list 2, 3, but `x = 2, y = 3` keeps its names."""
        found = [self.relation()]
        while self.take(*SEPARATORS):
            while self.take(*SEPARATORS):  # ", and"
                pass
            found.append(self.relation())
        if len({left or found[0][0] for left, _ in found}) > 1:
            return [name(f"{left}={item}") if left else item for left, item in found]
        return [item for _, item in found]

    def relation(self) -> tuple[str, Sum]:
        r"""Sums with relations between them. `x = 2` is ("x", 2); `x \in [0,1)` and `0 <= x < 1` are the interval."""
        sides, signs = [self.sum()], []
        while sign := self.take(*RELATIONS):
            side = self.sum()
            if sign == "=" and str(side) == str(sides[-1]):  # 2 + 3 = 5
                continue
            signs.append(sign)
            sides.append(side)
        if not signs:
            return "", sides[0]
        texts = [str(side) for side in sides]
        lone = [bool(LONE.fullmatch(text)) for text in texts]
        if len(signs) == 1 and signs[0] in ("=", r"\in", r"\approx") and lone[0]:
            return texts[0], sides[1]
        if signs == ["="] and lone[1]:
            return texts[1], sides[0]
        if len(signs) == 2 and set(signs) <= {"<", "<="} and lone[1]:
            left, right = "[" if signs[0] == "<=" else "(", "]" if signs[1] == "<=" else ")"
            return texts[1], name(f"{left}{texts[0]},{texts[2]}{right}")
        if set(signs) == {r"\cup"}:
            return "", name(r"\cup ".join(sorted(texts)))
        return "", name("".join(text + sign + " " * sign.startswith("\\") for text, sign in zip(texts, [*signs, ""])))

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
        r"""A product, written with or without signs. `1\frac23` is a mixed number; words at its end are a unit."""
        first = last = self.next()
        total = self.factor()
        while (token := self.next()) not in ENDS and token not in SIGNS:
            if self.take("*"):
                total *= self.factor()
            elif self.take("/"):
                total *= self.factor().inverse()
            elif self.at_unit():
                self.unit()
            elif last[-1].isdigit() and token[0] in ".0123456789":  # 2 3 is no product
                raise Unreadable
            else:
                part = self.factor()
                mixed = last == first and first.isdigit() and token == r"\frac" and 0 < (part.rational() or 0) < 1
                total = total + part if mixed else total * part
            last = token
        return total

    def at_unit(self) -> bool:
        """Whether words follow: not a letter in upright type, as in 2\\mathrm{i}."""
        word = self.next().strip("§ ")
        return self.next()[:1] == "§" and (len(word) > 1 or word in LETTER_UNITS)

    def unit(self) -> None:
        """Drop the words that end a quantity, and their power: 45 units^2, 5 m/s."""
        while self.at_unit() or self.next() == "/" and self.tokens[-2:-1] and self.tokens[-2][0] == "§":
            if set(re.findall(r"[a-z]+", self.tokens.pop().lower().replace(".", ""))) & set(NO_UNITS):
                raise Unreadable
            if self.take("^"):
                self.argument()
        if self.next() not in ENDS:
            raise Unreadable

    def factor(self) -> Sum:
        if self.take("-"):
            return number(-1) * self.factor()
        base = self.atom()
        while token := self.take("^", "!"):
            base = name(base.factor() + "!") if token == "!" else base.power(self.argument())
        return base

    def argument(self, first_digit: bool = False) -> Sum:
        r"""Of a command: a group or the next atom, of a number perhaps its first digit alone, as TeX reads \frac12."""
        token = self.next()
        if first_digit and token.isdigit() and len(token) > 1:
            self.tokens[-1] = token[1:]
            return number(token[0])
        return number(-1) * self.atom() if self.take("-") else self.atom()

    def atom(self) -> Sum:
        self.depth += 1
        if self.depth > 40 or self.next() in (*ENDS, "*", "/", "^", "_", "!"):
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
            return self.named(token) if self.next() == "_" else number(token)  # 12_5 is a name, not a number
        if token == r"\frac":
            above = self.argument(True)
            return above * self.argument(True).inverse()
        if token == r"\binom":
            above = self.argument(True)
            return name(rf"\binom{{{above}}}{{{self.argument(True)}}}")
        if token in (r"\sqrt", "sqrt"):
            degree = "2"
            if self.take("["):
                degree = str(self.sum())
                self.need("]")
            return root(self.argument(token == r"\sqrt"), degree)  # √12 in plain text is the root of 12
        if token == "{":
            inside = self.sum()
            self.need("}")
            return inside
        if token in BRACKETS:
            items = self.items()
            close = self.need(*BRACKETS[token])
            if len(items) == 1 and token + close == "()":
                return items[0]
            texts = [str(item) for item in items]
            return name(token + (";".join(sorted(texts)) if token == r"\{" else ",".join(texts)) + close)
        if token == r"\begin{matrix}":
            return self.matrix()
        if token in FUNCTIONS:
            below = f"_({self.argument()})" if self.take("_") else ""
            power = f"^({self.argument()})" if self.take("^") else ""
            return name(f"{token}{below}{power}({self.inside()})")
        if token in ("to", "in", "is", "of", "at", "by", "if", "no", "am", "pm"):  # words, no products
            raise Unreadable
        if token in ("f", "g", "h", "p") and self.next() == "(":  # f(2) is no product
            return name(f"{token}({self.atom()})")
        if token.isalpha() and len(token) == 2:  # xy is a product, longer words are names
            self.tokens.append(token[1])
            token = token[0]
        if not (re.fullmatch(r"[A-Za-z]+|[α-ωΑ-Ω]", token) or token in NAMES):
            raise Unreadable
        if token[0] == "\\" and self.next() == "{":
            token = f"{token}{{{self.argument()}}}"
            if self.next() == "{":  # a command of two arguments
                raise Unreadable
        return self.named(token)

    def inside(self) -> Sum:
        r"""The argument of a function: a bracket, or all that is written behind it: `\sin 2x` is the sine of 2x."""
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
        return name(r"\begin{matrix}" + r"\\".join("&".join(row) for row in rows) + r"\end{matrix}")
