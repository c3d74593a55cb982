r"""Where in a response its final answer stands: in a `\boxed{…}`, or in a sentence that says so."""

import json
import re

from tasks.math.formula import LONGEST_FORMULA, normalize_formula

MAX_BOXES = 8  # the last ones
LONGEST_TAIL = 10_000  # characters at a response's end, in which a stated answer is looked for
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*+(?=\{|[-+]?\.?\d)")
# Between the boxes of one list: `\boxed{1} and \boxed{2}`, `x = \boxed{1}, y = \boxed{2}`.
JOINED = re.compile(
    r"(?=.*(?:,|;|\band\b|\bor\b|\\q?quad))"
    r"(?:[\s$,;]|\\[,;: ()]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b|[A-Za-z]\s*=)*"
)
FORM = re.compile(  # what a prompt asks to fill in is no answer
    r"\s*(?:\\text\s*\{)?\s*(?:(?:your |final |the )*(?:answer|number|value|result)|_+|\\_|\?+"
    r"|\\square|\\Box|\\[lc]?dots|\.{2,}|…|\\underline.*|\\hspace.*|\\text\s*\{\s*\})?\s*\}?\s*"
)
FINAL_ANSWER = re.compile(r"(?i)final answer\b[^.:\n]{0,40}?(?:\bis\b|:)\s*+([^\n]*[\d\\$][^\n]*)")
ANSWER_FIELD = re.compile(r'"answer"\s*+:\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s",}\]]++))')  # of JSON
ANSWER_PHRASE = re.compile(r"(?im)(?:\banswer\b[^.:\n]{0,60}?(?:\bis\b|:)|^A:)\s*+:?\s*+([^\n]++)")
CHOICE = re.compile(r"\W*(\(?[A-Z]\)?)\W*")  # The answer is (C).
LABELED_WORD = re.compile(r"(?im)\banswer: *([a-z]{2,15})\W*$")
EMPHASIS = re.compile(r"(?<![\w)}\]*])\*\*(?=[^\s*])([^*\n]{1,300})(?<=[^\s*])\*\*(?![\w*])")
DISPLAY = re.compile(
    r"\$\$([^$]{1,400})\$\$|\\\[((?:[^\\]|\\[^\]]){1,400})\\\]"
    r"|\\begin\{(?:align|equation|gather)\*?\}((?:[^\\]|\\(?!end)){1,400})\\end\{\w+\*?\}"
)
ABBREVIATION = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bNo)(?<!\bSt)(?<!\bRs)"
SENTENCE_END = re.compile(ABBREVIATION + r"\.\s")
LEADING_WORDS = re.compile(r"(?i)\W*(?:(?:clearly|therefore|thus|hence|simply|just|then|so|exactly"
                           r"|equal to|given by)\b[ ,]*)+")


def extract_formula(text: str) -> str | None:
    """MATH: of the last boxes, or of what the text calls its answer.

    Boxes with only `and`, `or` or a comma between them are one list, as their author means them.
    """
    boxes = boxed_answers(text)
    if boxes is None:
        boxes = [formula_of(first_sentence(stated_answer(text) or ""))]
    answers = {normalize_formula(content) for content in boxes} - {None}
    if len(answers) > 1:  # `-b + 2 or 2 - b` is one answer
        return normalize_formula(",".join(boxes))
    return answers.pop() if answers else None


def boxed_answers(text: str) -> list[str] | None:
    r"""The content of the last `\boxed{…}`, and of those that form a list with it.

    None without a box; empty if the last never closes. A box with the form to fill in is none. An
    explicit "final answer is" behind the last box counts instead of it.
    """
    boxes = [box(text, match) for match in list(BOX.finditer(text))[-MAX_BOXES:]]
    if boxes and boxes[-1][0] is None:
        return []
    boxes = [found for found in boxes if found[0] is not None and not FORM.fullmatch(found[0])]
    if not boxes:
        return None
    content, start, end = boxes.pop()
    final = FINAL_ANSWER.findall(text, end)
    if final:
        return [formula_of(first_sentence(final[-1]))]
    contents = [content]
    while boxes and JOINED.fullmatch(text, boxes[-1][2], min(start, boxes[-1][2] + 60)):
        content, start, _ = boxes.pop()
        contents.insert(0, content)
    return contents


def box(text: str, opening: re.Match) -> tuple[str | None, int, int]:
    """Content, start and end of a box; the content is None if it never closes."""
    start = opening.end()
    if text[start] != "{":
        bare = re.compile(r"[^\s$.,;{}]*").match(text, start)
        return bare[0], opening.start(), bare.end()
    depth = 0
    for token in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":  # not \}, an escaped brace
            depth -= 1
        if depth == 0:
            return text[start + 1 : token.start()], opening.start(), token.end()
    return None, opening.start(), len(text)


def stated_answer(text: str) -> str | None:
    """The answer of a response without a mark: a JSON field, "the answer is …", or all there is."""
    fields = ANSWER_FIELD.findall(text) if '"answer"' in text else []
    if fields:
        quoted, bare = fields[-1]
        return unescape(quoted) or bare
    text = text[-LONGEST_TAIL:]
    if "**" in text:
        text = EMPHASIS.sub(r"\1", text)
    if "$$" in text or "\\[" in text or "\\begin" in text:
        text = DISPLAY.sub(inline, text)
    for phrase in reversed(ANSWER_PHRASE.findall(text)):
        if re.search(r"[\d$\\]", phrase) or CHOICE.fullmatch(phrase):
            return phrase
    words = LABELED_WORD.findall(text)
    if words:
        return words[-1]
    return text.strip() if stands_alone(text.strip()) else None


def inline(display: re.Match) -> str:
    """The formula of a displayed block, on one line."""
    [formula] = filter(None, display.groups())
    return f" ${' '.join(formula.split())}$ "


def stands_alone(text: str) -> bool:
    """Whether a text is an answer and nothing else: `2x + 2`, `18 apples`, no sentence."""
    if len(text) > LONGEST_FORMULA or not re.search("[A-Za-z0-9]", text) or BOX.search(text):
        return False
    if re.fullmatch(r"(?:\\[a-z]+ |\S)+", text):
        return True
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    return len(words) <= 1 and not re.search(r"\n|[.!?]\s", text)


def first_sentence(statement: str) -> str:
    """The period of an abbreviation ends no sentence."""
    return SENTENCE_END.split(statement, maxsplit=1)[0]


def formula_of(sentence: str) -> str:
    """The formula in a sentence that states an answer."""
    sentence = re.split(r"\bis\b", sentence)[-1]  # Final answer: the largest n is 34
    before, dollar, rest = sentence.partition("$")
    formula, _, after = rest.partition("$")
    alone = "$" not in after  # The answer is $x + 2$ as …
    if not before.strip() and re.match(r"\s*(?!and\b|or\b)[a-z]{2,}", after):
        alone = True  # $5$ because $2 + 3 = 5$
    if dollar and formula and alone and not re.search(r"\d", before):
        return formula
    return LEADING_WORDS.sub("", sentence, count=1) if LEADING_WORDS.match(sentence) else sentence


def unescape(quoted: str) -> str:
    """The text of a JSON string; TeX that nobody escaped stays as it is."""
    without_escapes = re.sub(r'\\(?:[\\"]|u[0-9a-fA-F]{4})', "", quoted)
    if "\\" in without_escapes:
        return quoted
    text = json.loads(f'"{quoted}"', strict=False)
    return text.encode(errors="ignore").decode()  # drops half surrogates
