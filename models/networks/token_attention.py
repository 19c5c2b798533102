"""Self-attention among all tokens of a clip, or factorised: within each frame, or along time at each place.

Factorised blocks are those of Bertasius et al. 2021 (TimeSformer, section 3, "divided space-time") and Ma et al. 2024
(Latte, variant 1). With n tokens of t frames, a block computes n^2 scores in full, n^2 / t in space and n t in time.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from models.attention.attention import attention
from models.networks.dit_options import AttentionSpan
from models.networks.protocol import SequenceParallelPlan


def token_attention(
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b n heads d"],
    value: Float[Tensor, "b n heads d"],
    span: AttentionSpan,
    num_frames: int,
    plan: SequenceParallelPlan,
) -> Float[Tensor, "b n heads d"]:
    """Attention of each token to those of its span; the tokens of a frame follow one another.

    Processes that share a clip's tokens have a part of every frame each: they exchange tokens in full and in space,
    while every place has all its times on one process.
    """
    match span:
        case "full":
            return plan.attention(query, key, value)
        case "space":
            query, key, value = (rearrange(x, "b (t s) h d -> (b t) s h d", t=num_frames) for x in (query, key, value))
            return rearrange(plan.attention(query, key, value), "(b t) s h d -> b (t s) h d", t=num_frames)
        case "time":
            batch = len(query)
            query, key, value = (rearrange(x, "b (t s) h d -> (b s) t h d", t=num_frames) for x in (query, key, value))
            return rearrange(attention(query, key, value), "(b s) t h d -> b (t s) h d", b=batch)
