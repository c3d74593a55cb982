"""The page of votes: every response under its answer, nothing of a model's text as markup."""

from html.parser import HTMLParser

from conftest import ROOT, run

from bench import page
from bench.page import votes_page
from common.files import write_jsonl

HOSTILE = "<script>alert(1)</script> & \" '"


class Reader(HTMLParser):
    """The tags, and the text of every element of a kind."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


def row(*responses: str, **more) -> dict:
    return {"id": "p", "question": f"Q {HOSTILE}", "responses": list(responses), **more}


def test_responses_are_grouped_by_answer_the_most_voted_first():
    rows = [row("#### 1", "#### 2", "#### 2", "none", gold="2")]
    texts = Reader(votes_page("votes", {"M1": rows}, [], "toy")).texts
    assert texts["h4"] == ["2 × 2", "1 × 1", "1 × no answer"]
    assert texts["p"][1:] == ["#### 2", "#### 2", "#### 1", "none"]
    assert texts["summary"] == [f"2 of 4Q {HOSTILE}"]


def test_the_pair_is_marked_also_where_an_extra_response_is_rejected():
    pair = {"id": "p", "chosen": "#### 2", "rejected": "#### 9", "sample_chosen": 1,
            "sample_rejected": 3}
    rows = [row("#### 2", "#### 2", extra_responses=["#### 2", "#### 9"])]
    texts = Reader(votes_page("votes", {"M1": rows}, [pair], "toy")).texts
    assert texts["b"] == ["chosen ", "rejected "]
    assert texts["p"][1:] == ["#### 2", "chosen #### 2", "rejected #### 9"]


def test_no_text_of_a_model_becomes_markup():
    rows = [row(f"{HOSTILE} #### 1")]
    html = votes_page(HOSTILE, {HOSTILE: rows, "M1": rows}, [], "toy")
    tags = Reader(html).tags
    assert {tag for tag, _ in tags} == {
        "html", "meta", "title", "style", "h1", "p", "details", "summary", "span", "div", "h3",
        "h4"}
    assert "http" not in html and "src=" not in html  # nothing is loaded


def test_a_run_is_shown_model_beside_model(tmp_path, error_of):
    for name, answers in (("M0", ("#### 1", "#### 2")), ("M1", ("#### 2", "#### 2"))):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "eval_responses.jsonl", [row(*answers)])
    out = tmp_path / "votes.html"
    run(page, tmp_path, "--out", out)
    texts = Reader(out.read_text(encoding="utf-8")).texts
    assert texts["h3"] == ["M0", "M1"] and texts["span"] == ["1 of 2 → 2 of 2"]
    assert "already" in error_of(page, tmp_path, "--out", out)
    assert "no M*/eval_responses.jsonl" in error_of(page, ROOT / "docs", "--out", tmp_path / "o")
