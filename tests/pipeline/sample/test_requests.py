"""Files of prompts: what they may hold, and how a bad one is refused."""

import pytest


def test_prompts_files(tmp_path):
    from pipeline.sample.requests import Prompt, PromptError, order_buckets, plan_requests, read_prompts

    path = tmp_path / "prompts.txt"
    with pytest.raises(PromptError, match="no such prompts file"):
        read_prompts(path)
    path.write_text("\n\n")
    with pytest.raises(PromptError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(PromptError, match="is not UTF-8"):
        read_prompts(path)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"promt": "two"}\n')
    with pytest.raises(PromptError, match="line 2 is not a prompt: prompt: Field required"):
        read_prompts(path)
    path.write_text('{"prompt": "one", "seed": 5}\n{"prompt": "two"}\n{"prompt": "two"}\n')
    prompts, warnings = read_prompts(path)
    assert warnings == []
    requests = plan_requests(prompts, [3.0, 1.0], 0, "settings", ["a", "b"])
    assert len({request.id for request in requests}) == 6
    assert requests[0].seed == requests[1].seed == 5
    assert requests[2].seed != requests[4].seed  # equal lines are different clips
    fewer = plan_requests(prompts[1:], [3.0, 1.0], 0, "settings", ["a", "b"])
    assert fewer == requests[2:]
    assert {request.bucket for request in requests} == {"a"}
    shaped = plan_requests([Prompt(prompt="one", seed=5, bucket="b")], [3.0], 0, "settings", ["a", "b"])
    assert shaped[0].bucket == "b"
    assert shaped[0].id != requests[0].id
    with pytest.raises(PromptError, match=r"bucket c of prompt 'one' was not trained; use a, b"):
        order_buckets(["a", "b"], None, [Prompt(prompt="one", bucket="c")])
    with pytest.raises(PromptError, match=r"sample.bucket is 'c', but the training was on a, b"):
        order_buckets(["a", "b"], "c", [])
    assert order_buckets(["a", "b"], "b", prompts) == ["b", "a"]
    assert {r.id for r in plan_requests(prompts, [3.0], 0, "other", ["a", "b"])}.isdisjoint(r.id for r in requests)
