"""Batches of a sampling job do not depend on the order of the prompts."""

from pipeline.sample.job import canonical_batches
from pipeline.sample.requests import PromptRequest


def test_batches_are_the_same_in_whatever_order_prompts_are_listed():
    requests = [
        PromptRequest(id=f"{i:02}", prompt="p", seed=i, guidance_scale=float(i % 2), bucket="9x32x32@8")
        for i in (5, 3, 8, 1, 2, 9, 4)
    ]
    expected = [["02", "04"], ["08"], ["01", "03"], ["05", "09"]]
    for listed in (requests, requests[::-1], requests[3:] + requests[:3]):
        assert [[request.id for request in batch] for batch in canonical_batches(listed, 2)] == expected
