"""Other judges than the vote, and the line of pairs.jsonl that each of them makes."""

import random

import pytest
from conftest import train_args

import train
from scpo import NoPair, gold_pair, reward_pair

SOLVED = ["#### 1", "#### 1 apple", "#### 1.0", "#### 2"]  # three agree, the fourth differs


def row_of(responses: list[str], **more) -> dict:
    """A line of responses.jsonl."""
    ended = [True] * len(responses)
    return {"id": "p", "prompt": "Q", "responses": responses, "ended": ended, **more}


def make_pair(row, *options, gold=None, rewards=None, tau=0.5, seed=0) -> dict:
    """The line of pairs.jsonl, by the options of train.py."""
    args = train_args("--tau", tau, "--seed", seed, *options)
    [pair] = train.pairs_of_problem(row, gold, rewards, args, t=1)
    return pair


def reason_for_no_pair(function, *args, **kwargs) -> str:
    with pytest.raises(NoPair) as reason:
        function(*args, **kwargs)
    return str(reason.value)


# --------------------------------------------------------------------------------------------
# ScPO's own line


def test_a_line_has_everything_that_trl_and_a_reader_need():
    row = row_of(SOLVED, extra_responses=["#### 3"], extra_ended=[True])
    pair = make_pair(row)
    assert pair["sample_chosen"] in (0, 1, 2)
    assert pair == {
        "id": "p", "prompt": "Q", "k": 4, "weight": 3 / 4,
        "chosen": SOLVED[pair["sample_chosen"]], "votes_chosen": 3, "answer_chosen": "1",
        "sample_chosen": pair["sample_chosen"], "ended_chosen": True,
        "rejected": "#### 3", "votes_rejected": 0, "answer_rejected": "3",
        "sample_rejected": 4, "ended_rejected": True,
        "ids_chosen": None, "ids_rejected": None,  # nobody knows the tokens of these texts
    }


def test_a_line_says_which_response_was_cut_off():
    """Then it has no answer, and is trained without EOS."""
    row = row_of(SOLVED, extra_responses=["#### 1"], extra_ended=[False])
    pair = make_pair(row)
    assert (pair["rejected"], pair["sample_rejected"]) == ("#### 1", 4)
    assert (pair["answer_rejected"], pair["votes_rejected"]) == (None, 0)
    assert (pair["ended_chosen"], pair["ended_rejected"]) == (True, False)


def test_each_round_has_its_tau():
    """3 of 4 votes pass 0.5, the τ of round 1, but not 0.9, that of round 2 and of those after."""
    args = train_args("--tau", 0.5, 0.9)
    row = row_of(SOLVED)
    assert train.pairs_of_problem(row, None, None, args, t=1)[0]["votes_chosen"] == 3
    for t in (2, 3):
        assert reason_for_no_pair(train.pairs_of_problem, row, None, None, args, t) == "below tau"


def test_unweighted_pairs_have_weight_one():
    weighted, unweighted = make_pair(row_of(SOLVED)), make_pair(row_of(SOLVED), "--unweighted")
    assert weighted["weight"] == 0.5
    assert unweighted == {**weighted, "weight": 1.0}


def test_what_became_of_the_problems_is_told_in_one_line(capsys):
    """And two pairs are shown."""
    no_answer = ["#### 1", "#### 1", "#### 1", "none"]
    rows = [SOLVED, no_answer, SOLVED, ["#### 1"] * 4, ["#### 1", "#### 2"] * 2,
            ["#### 1", "#### 2"] * 2, ["#### 1", "#### 2", "#### 3", "#### 4"]]
    rows = [{**row_of(responses), "id": i} for i, responses in enumerate(rows)]
    pairs = train.make_pairs(rows, [], train_args("--tau", 0.5), t=3)
    assert [pair["id"] for pair in pairs] == [0, 1, 2]
    first, *shown = capsys.readouterr().out.splitlines()
    assert first == (
        "M3 pairs: 3 from 7 problems (others: 1 still unanimous, 2 tied, 1 below tau); "
        "1 reject a response without an answer")
    assert [line for line in shown if line.startswith("    w ")] == ["    w 0.50", "    w 0.75"]
    assert shown[2] == "      rejected, 1 votes: #### 2"


# --------------------------------------------------------------------------------------------
# Gold answers (IRPO)


def gold_pairs(answers: list, gold: str, k: int = 5) -> set[tuple[int, int]]:
    """All pairs that 200 draws give."""
    return {gold_pair(answers, k, gold, random.Random(seed)) for seed in range(200)}


def test_gold_takes_any_right_and_any_wrong_response():
    """A response without an answer is wrong."""
    answers = ["1", "2", None, "1", "3"]
    right, wrong = (0, 3), (1, 2, 4)
    assert gold_pairs(answers, "1") == {(c, r) for c in right for r in wrong}


@pytest.mark.parametrize("answers, gold, reason", [
    (["1", "2", None, "1", "3"], "9", "none right"),
    (["1", "2", None, "1", "3"], None, "no gold answer"),
    ([None] * 5, None, "no gold answer"),  # None against None is no right answer
    (["1"] * 5, "1", "none wrong"),
    (["1"] * 7, "1", "none wrong"),  # nor among the extra ones
    (["2"] * 5 + ["1"], "1", "none right"),  # an extra response is never chosen
])
def test_gold_says_why_there_is_no_pair(answers, gold, reason):
    assert reason_for_no_pair(gold_pair, answers, 5, gold, random.Random(0)) == reason


def test_gold_rejects_an_extra_response_only_where_all_k_are_right():
    all_right = ["1"] * 5 + ["2", "1", None]
    assert {rejected for _, rejected in gold_pairs(all_right, "1")} == {5, 7}
    one_wrong = ["1"] * 4 + ["2", "3"]
    assert {rejected for _, rejected in gold_pairs(one_wrong, "1")} == {4}


def test_gold_may_choose_against_the_vote_and_has_weight_one():
    pair = make_pair(row_of(SOLVED), "--method", "gold", gold="2")
    assert pair["chosen"] == "#### 2" and pair["answer_rejected"] == "1"
    assert (pair["votes_chosen"], pair["votes_rejected"]) == (1, 3)
    assert pair["weight"] == 1.0


def test_semi_takes_gold_where_there_is_one_and_votes_elsewhere():
    row = row_of(SOLVED)
    by_gold = make_pair(row, "--method", "semi", gold="2")
    assert by_gold == make_pair(row, "--method", "gold", gold="2")
    by_votes = make_pair(row, "--method", "semi")
    assert by_votes == make_pair(row)
    assert by_gold["weight"] == 1.0 and by_votes["weight"] == 0.5


# --------------------------------------------------------------------------------------------
# A reward model (IRPO_RM)


def test_reward_takes_the_highest_against_the_lowest():
    assert reward_pair([0.5, -1.0, 2.0, -1.0]) == (2, 1)  # of equal ones the first


def test_equal_rewards_give_no_pair():
    assert reason_for_no_pair(reward_pair, [0.5, 0.5]) == "tied"


def test_reward_looks_at_no_vote_and_has_weight_one():
    pair = make_pair(row_of(SOLVED), "--method", "reward", rewards=[0.1, 0.0, 0.2, 0.3])
    assert (pair["sample_chosen"], pair["sample_rejected"]) == (3, 1)
    assert (pair["votes_chosen"], pair["votes_rejected"]) == (1, 3)
    assert pair["weight"] == 1.0


# --------------------------------------------------------------------------------------------
# The vote's winner alone (LMSI)


def test_lmsi_rejects_nothing_and_has_weight_one():
    pair = make_pair(row_of(["#### 1"] * 4), "--method", "lmsi")
    assert pair["rejected"] is None and pair["chosen"] == "#### 1"
    assert pair["weight"] == 1.0 and pair["votes_chosen"] == 4
    assert not any(name.endswith("_rejected") for name in pair)


def test_lmsi_needs_a_clear_vote():
    for responses, expected in (
        (["#### 1", "#### 1", "#### 2", "none"], "below tau"),
        (["none"] * 4, "without any answer"),
    ):
        reason = reason_for_no_pair(make_pair, row_of(responses), "--method", "lmsi", tau=0.75)
        assert reason == expected


def test_lmsi_has_the_target_that_scpo_chooses():
    row = row_of(["none", "#### 1", "#### 2", "#### 1"])
    chosen = set()
    for seed in range(20):
        lmsi, scpo = make_pair(row, "--method", "lmsi", seed=seed), make_pair(row, seed=seed)
        assert lmsi["sample_chosen"] == scpo["sample_chosen"]
        chosen.add(lmsi["sample_chosen"])
    assert chosen == {1, 3}


# --------------------------------------------------------------------------------------------
# A coin instead of the vote (a control)


def test_coin_turns_half_of_the_pairs_and_keeps_their_weight():
    pairs = [make_pair(row_of(SOLVED), "--method", "coin", seed=seed) for seed in range(400)]
    assert {pair["weight"] for pair in pairs} == {0.5}
    turned = [pair for pair in pairs if pair["chosen"] == "#### 2"]
    assert 150 < len(turned) < 250


def test_coin_takes_the_responses_that_scpo_takes():
    row = row_of(SOLVED)
    for seed in range(20):
        coin, scpo = make_pair(row, "--method", "coin", seed=seed), make_pair(row, seed=seed)
        assert {coin["chosen"], coin["rejected"]} == {scpo["chosen"], scpo["rejected"]}
