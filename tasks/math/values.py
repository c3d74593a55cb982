r"""Values in the one form in which equal ones look alike: sums of products of numbers and names.

`2√3 - x/2` is {("\\sqrt{3}",): 2, ("x",): -1/2}. Numbers are worked out exactly: fractions, roots
of whole numbers, i; all else is a name, and products of names are only sorted.
"""

import re
from fractions import Fraction

MOST_TERMS = 64  # of a product that is worked out: (1 + √2)(1 + √3)… doubles with every factor
MOST_BITS = 1000  # of a number that is worked out; a larger one stays a power


class Unreadable(Exception):
    """Not a formula of the kinds that answers are made of."""


class Sum:
    """A sum of products, {sorted factors: coefficient}: equal values look alike."""

    def __init__(self, terms: dict[tuple[str, ...], Fraction]):
        self.terms = {factors: c for factors, c in terms.items() if c}
        for c in self.terms.values():
            if c.numerator.bit_length() + c.denominator.bit_length() > MOST_BITS:
                raise Unreadable

    def rational(self) -> Fraction | None:
        return self.terms.get((), Fraction(0)) if self.terms.keys() <= {()} else None

    def is_numeric(self) -> bool:
        factors = [factor for factors in self.terms for factor in factors]
        return all(f == "i" or f.startswith((r"\pi", r"\sqrt")) for f in factors)

    def __str__(self) -> str:
        out = ""
        for factors, c in sorted(self.terms.items()) or [((), Fraction(0))]:
            powers = [POWER.fullmatch(f) for f in factors]
            above = [f for f, power in zip(factors, powers) if not power or int(power[2]) > 0]
            below = [raised(p[1], -int(p[2])) for p in powers if p and int(p[2]) < 0]
            if abs(c.numerator) != 1 or not above:
                above.insert(0, str(abs(c.numerator)))
            if c.denominator != 1:
                below.insert(0, str(c.denominator))
            sign = "-" if c < 0 else "+" if out else ""
            out += sign + "*".join(above)
            if below:
                out += f"/({'*'.join(below)})" if len(below) > 1 else f"/{below[0]}"
        return out

    def factor(self) -> str:
        """As one factor of a product: in brackets unless it is one already."""
        [*terms] = self.terms.items()
        single = len(terms) == 1 and len(terms[0][0]) == 1 and terms[0][1] == 1
        return terms[0][0][0] if single else f"({self})"

    def is_name(self) -> bool:
        """Whether it names something, as |AB|, \\angle A, NO/BO: names alone, without a sign."""
        [*terms] = self.terms.items()
        if len(terms) != 1 or terms[0][1] != 1 or self.is_numeric():
            return False
        powers = [POWER.fullmatch(factor) for factor in terms[0][0]]
        return all(power is None or power[2] == "-1" for power in powers)

    def __add__(self, other: "Sum") -> "Sum":
        both = self.terms | other.terms
        return Sum({f: self.terms.get(f, Fraction(0)) + other.terms.get(f, 0) for f in both})

    def __mul__(self, other: "Sum") -> "Sum":
        sides = [self, other]
        if len(self.terms) * len(other.terms) > MOST_TERMS:
            raise Unreadable
        scalar = self.rational() is not None or other.rational() is not None
        if not scalar and not (self.is_numeric() and other.is_numeric()):
            # With letters, a product of sums stays one.
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
            return self.inverse_of_two() or name(f"({self})^(-1)")
        [(factors, c)] = self.terms.items()
        total = number(1 / c)
        for f in factors:
            power = POWER.fullmatch(f)
            if radicand(f):  # 1/√n = √n/n
                total *= Sum({(f,): Fraction(1, radicand(f))})
            elif f == "i":
                total *= Sum({("i",): Fraction(-1)})
            else:
                total *= name(raised(power[1], -int(power[2])) if power else f + "^(-1)")
        return total

    def inverse_of_two(self) -> "Sum | None":
        """1/(a + b√n) and 1/(a + bi), by what makes the denominator rational."""
        [*terms] = self.terms.items()
        if len(terms) != 2 or not all(f == "i" or radicand(f) for f in sum(self.terms, ())):
            return None
        conjugate = Sum(dict([terms[0], (terms[1][0], -terms[1][1])]))
        below = (self * conjugate).rational()
        return conjugate * number(1 / below) if below else None

    def power(self, exponent: "Sum") -> "Sum":
        e, base = exponent.rational(), self.rational()
        if e == -1:
            return self.inverse()
        if e is not None and e.numerator == 1 and 1 < e.denominator < 10:
            return root(self, e.denominator)
        if e is not None and e.denominator == 1:
            if base and abs(e) * bits(base) < MOST_BITS:
                return number(base ** int(e))
            if base is None and self.is_numeric() and 1 < e <= 8:
                return self * self.power(number(e - 1))
        return self if e == 1 else name(f"{self.factor()}^({exponent})")


def bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def number(value: Fraction | int | str) -> Sum:
    """A long decimal is what a program prints of a fraction: 0.3333333333333333 is 1/3."""
    exact = Fraction(value)
    if isinstance(value, str) and len(value.partition(".")[2]) >= 8:
        near = exact.limit_denominator(1000)
        if abs(near - exact) < Fraction(1, 10**8):
            exact = near
    return Sum({(): exact})


def name(text: str) -> Sum:
    return Sum({(text,): Fraction(1)})


POWER = re.compile(r"(.+)\^\((-?\d+)\)", re.DOTALL)


def raised(base: str, exponent: int) -> str:
    return base if exponent == 1 else f"{base}^({exponent})"


def radicand(factor: str) -> int:
    """n of the factor √n of a whole number, else 0."""
    inside = re.fullmatch(r"\\sqrt\{(\d+)\}", factor)
    return int(inside[1]) if inside else 0


def product(factors: tuple[str, ...], c: Fraction) -> Sum:
    """√a·√b = √(ab) without its square divisors, i·i = -1, x·x = x²; other factors are sorted."""
    inside, exponents = 1, {}
    for f in factors:
        power = POWER.fullmatch(f)
        if radicand(f):
            inside *= radicand(f)
        elif f != "i":
            base, exponent = (power[1], int(power[2])) if power else (f, 1)
            exponents[base] = exponents.get(base, 0) + exponent
    if sum(base.startswith(r"\begin") for base in exponents) > 1:
        raise Unreadable  # the order of matrices matters
    outside, inside = without_powers(inside, 2)
    imaginary = factors.count("i")
    rest = [raised(base, exponent) for base, exponent in exponents.items() if exponent]
    if inside != 1:
        rest.append(rf"\sqrt{{{inside}}}")
    if imaginary % 2:
        rest.append("i")
    sign = -1 if imaginary % 4 > 1 else 1
    return Sum({tuple(sorted(rest)): c * outside * sign})


def without_powers(n: int, degree: int) -> tuple[int, int]:
    """(a, b) with n = a^degree · b, where b has no such divisor below 1000."""
    outside, divisor = 1, 2
    while divisor**degree <= n and divisor < 1000:
        while n % divisor**degree == 0:
            n, outside = n // divisor**degree, outside * divisor
        divisor += 1
    return outside, n


def root(inside: Sum, degree: int) -> Sum:
    """Of a rational number as far as it goes: √(p/q) = √(pq)/q, ∛16 = 2∛2, ∜4 = √2."""
    value = inside.rational()
    if value is None or not 1 < degree < 10:
        index = "" if degree == 2 else f"[{degree}]"
        return name(rf"\sqrt{index}{{{inside}}}")
    if value < 0:
        if degree == 2:
            return root(number(-value), 2) * name("i")
        if degree % 2 == 0:
            raise Unreadable
        return number(-1) * root(number(-value), degree)
    if value == 0:
        return number(0)
    # q^degree below the root: p/q = p·q^(degree - 1) / q^degree
    n = value.numerator * value.denominator ** (degree - 1)
    if n.bit_length() > MOST_BITS:
        raise Unreadable
    for smaller in range(2, degree):
        if degree % smaller == 0 and whole_root(n, smaller):
            return root(number(whole_root(n, smaller)), degree // smaller) * number(
                Fraction(1, value.denominator))
    if whole := whole_root(n, degree):
        return number(Fraction(whole, value.denominator))
    outside, n = without_powers(n, degree)
    index = "" if degree == 2 else f"[{degree}]"
    return Sum({(rf"\sqrt{index}{{{n}}}",): Fraction(outside, value.denominator)})


def whole_root(n: int, degree: int) -> int | None:
    """The whole number whose power is n; only looked for where a float is sure."""
    near = round(n ** (1 / degree)) if n < 10**15 else 0
    return near if near**degree == n else None


def both_signs(item: Sum) -> list[Sum]:
    r"""1 ± √2 as its two values; what has several ± stays."""
    with_sign = [factors for factors in item.terms if r"\pm" in factors]
    if len(with_sign) != 1:
        return [item]
    factors, values = with_sign[0], []
    rest = tuple(factor for factor in factors if factor != r"\pm")
    for sign in (1, -1):
        others = {f: c for f, c in item.terms.items() if f != factors}
        values.append(Sum(others) + Sum({rest: sign * item.terms[factors]}))
    return values
