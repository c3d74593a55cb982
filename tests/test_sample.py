"""Step 2: k responses to each prompt, which depend on seed, prompt and sample number alone."""

from dataclasses import fields, replace

import numpy as np
import pytest
from conftest import random_llama, tiny_config, train_args
from tqdm import tqdm

import eval as evaluation
import sample
import train
from common.cli import InputError
from common.options import parse_args
from sample import Response, SamplingParams, draw_uniforms, generate, prefill

MODEL = random_llama(tiny_config())
PROMPTS = [[0, 5, 9], [0, 7, 7, 30, 41, 2, 8, 60, 11], [0]]
STOPS = range(1, 9)  # an eighth of the vocabulary: responses end at all kinds of steps
PARAMS = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=10)


def responses_to(prompts=PROMPTS, k=4, params=PARAMS, seed=(0,), **more) -> list[list[Response]]:
    return generate(MODEL, prompts, k, params, seed=seed, **{"stop_ids": STOPS, **more})


# --------------------------------------------------------------------------------------------
# What samples depend on


def test_k_rows_equal_k_single_runs():
    together = responses_to(k=4)
    lengths = {len(response.tokens) for responses in together for response in responses}
    assert len(lengths) > 4  # rows ended at many steps, and were dropped
    for prompt, responses in zip(PROMPTS, together, strict=True):
        for i, response in enumerate(responses):
            assert responses_to([prompt], k=1, first_sample=i) == [[response]]


def test_samples_do_not_depend_on_the_batch():
    alone = [responses_to([prompt])[0] for prompt in PROMPTS]
    assert responses_to(PROMPTS) == alone


def test_samples_do_not_depend_on_the_order_of_the_prompts():
    assert responses_to(PROMPTS[::-1]) == responses_to(PROMPTS)[::-1]


def test_samples_do_not_depend_on_the_rows_decoded_at_once():
    for rows in (1, 4, 8):
        assert responses_to(params=replace(PARAMS, max_num_seqs=rows)) == responses_to()


def test_samples_depend_on_seed_round_and_sample_number():
    runs = [responses_to(seed=(0,)), responses_to(seed=(1,)), responses_to(seed=(0, 1)),
            responses_to(seed=(0, 2)), responses_to(seed=(0,), first_sample=4)]
    for i in range(len(PROMPTS)):
        for n, run in enumerate(runs):
            for other in runs[:n]:
                assert run[i] != other[i]


def test_samples_are_repeated_with_the_seed():
    assert responses_to(seed=(3,)) == responses_to(seed=(3,))


def test_a_higher_token_limit_only_continues_responses():
    short = responses_to(params=replace(PARAMS, max_new_tokens=5))
    long = responses_to(params=replace(PARAMS, max_new_tokens=12))
    cut_off = 0
    for shorter, longer in zip(sum(short, []), sum(long, []), strict=True):
        if shorter.ended:
            assert shorter == longer
        else:
            assert shorter.tokens == longer.tokens[:5]
            cut_off += 1
    assert cut_off > 0


def test_a_higher_token_limit_only_continues_the_uniforms():
    for number in range(2):
        few = draw_uniforms([3], [1, 2], number, 5)
        many = draw_uniforms([3], [1, 2], number, 12)
        assert (few == many[:5]).all()


def test_samples_of_one_prompt_do_not_share_their_first_token():
    """64 draws of 64 tokens that are equally likely: about 40 are distinct."""
    flat = random_llama(tiny_config())
    flat.lm_head.weight.data.zero_()
    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=1)
    [responses] = generate(flat, [[0, 5]], 64, params, seed=[0])
    first_tokens = [response.tokens[0] for response in responses]
    assert 30 <= len(set(first_tokens)) < 64


# --------------------------------------------------------------------------------------------
# Where responses end


def test_stop_tokens_end_a_response_and_are_not_part_of_it(monkeypatch):
    """The tokens are scripted: a row each, in place of the random numbers; 2 and 3 are stops."""
    script = np.array([[7, 8, 2, 9], [2, 9, 9, 9], [5, 3, 9, 9], [4, 4, 4, 4], [4, 4, 4, 2]])

    def scripted_token(logits, uniforms, temperature, top_p):
        return uniforms.long()

    monkeypatch.setattr(sample, "next_token", scripted_token)
    cache, logits = prefill(MODEL, [[0, 5]], k=5, max_new_tokens=4)
    params = replace(PARAMS, max_new_tokens=4)
    decoded = sample.decode(
        MODEL, cache, logits, script, params, {2, 3}, None, tqdm(disable=True))
    assert decoded == [
        Response([7, 8], ended=True),
        Response([], ended=True),
        Response([5], ended=True),
        Response([4, 4, 4, 4], ended=False),
        Response([4, 4, 4], ended=True),
    ]


def test_stop_fn_ends_a_response_soon_after_it_says_so():
    params = replace(PARAMS, max_new_tokens=16)

    def more_than_four(tokens: list[int]) -> bool:
        return len(tokens) > 4

    free = responses_to(params=params, stop_ids=())
    cut = responses_to(params=params, stop_ids=(), stop_fn=more_than_four)
    for whole, stopped in zip(sum(free, []), sum(cut, []), strict=True):
        assert len(whole.tokens) == 16 and not whole.ended
        assert 4 < len(stopped.tokens) <= 4 + sample.STOP_FN_EVERY and stopped.ended
        assert stopped.tokens == whole.tokens[: len(stopped.tokens)]


def test_a_prompt_beyond_the_model_is_refused():
    """The model reads 512 tokens."""
    fits, exceeds = replace(PARAMS, max_new_tokens=12), replace(PARAMS, max_new_tokens=13)
    assert responses_to([[0] * 500], k=1, params=fits)
    with pytest.raises(InputError, match="500 tokens.*--max-new-tokens"):
        responses_to([[0] * 500], k=1, params=exceeds)


# --------------------------------------------------------------------------------------------
# SamplingParams


class Parsed(Exception):
    """A script's options, instead of its work."""


@pytest.mark.parametrize("script", [sample, evaluation, train], ids=lambda s: s.__name__)
def test_every_sampling_parameter_is_an_option_of_the_script(script, monkeypatch):
    argv = ["--temperature", "0.25", "--top-p", "0.5", "--max-new-tokens", "7",
            "--max-num-seqs", "3"]

    def parse_and_stop(parser, **kwargs):
        raise Parsed(parse_args(parser, argv, **kwargs))

    monkeypatch.setattr(script, "parse_args", parse_and_stop)
    with pytest.raises(Parsed) as parsed:
        script.main()
    [args] = parsed.value.args
    assert set(vars(args)) > {field.name for field in fields(SamplingParams)}
    assert SamplingParams.from_args(args) == SamplingParams(0.25, 0.5, 7, 3)


@pytest.mark.parametrize("missing", [field.name for field in fields(SamplingParams)])
def test_a_parameter_without_an_option_is_no_silent_default(missing):
    """max_num_seqs has a default, which must not stand in for an option that was forgotten."""
    args = train_args()
    SamplingParams.from_args(args)
    delattr(args, missing)
    with pytest.raises(AttributeError, match=missing):
        SamplingParams.from_args(args)
