"""Attention, rotary embedding, caption encoder, DiT and autoencoder: what must hold of them exactly."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from models.attention.attention import MATMUL_MAX_SCORES, attention, choose_backend
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder, Posterior, psnr_db, squared_error
from models.autoencoder.shapes import latent_shape
from models.layers import HeadNorm, RMSNorm, time_embedding
from models.networks.config import DiTConfig
from models.networks.dit import DiT, patchify, unpatchify
from models.networks.rope import axis_widths, rope_angles, rotate
from models.text.bytes import CaptionEncoder, CaptionTokens
from models.text.config import TextConfig

SMALL_DIT = DiTConfig(width=64, depth=2, heads=2, text=TextConfig(width=32, depth=1, heads=2, max_bytes=24))
SMALL_AE = AutoencoderConfig(latent_channels=4, width=8, deep_width=16)


def reference_attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v in float64, one head and sample at a time."""
    out = torch.empty_like(q, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h].double() @ k[b, :, h].double().T / q.shape[-1] ** 0.5
            if mask is not None:
                scores[:, ~mask[b]] = -torch.inf
            out[b, :, h] = scores.softmax(-1) @ v[b, :, h].double()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_reference(dtype, masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 7, 3, 8), torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]]) if masked else None
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = attention(q, k, v, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), reference_attention(q, k, v, mask), rtol=tolerance, atol=tolerance)
    assert out.dtype == dtype


def test_attention_kernel_choice():
    short, long = torch.zeros(1, 16, 1, 8), torch.zeros(1, MATMUL_MAX_SCORES // 16 + 1, 1, 8)
    assert choose_backend(short, short, None) == "sdpa"
    assert choose_backend(short.bfloat16(), short.bfloat16(), None) == "matmul"
    assert choose_backend(short.bfloat16(), long.bfloat16(), None) == "sdpa"


def test_rope_depends_on_offsets_only():
    """<R(p) q, R(k) k> is the same for every pair of tokens with the same offset (Su et al. 2021, eq. 16)."""
    torch.manual_seed(0)
    grid = (3, 4, 5)
    angles = rope_angles(grid, 16).double()
    q, k = torch.randn(2, 16, dtype=torch.float64).unbind(0)
    tokens = 3 * 4 * 5
    rotated_q = rotate(q.expand(1, tokens, 1, 16), angles)[0, :, 0].reshape(*grid, 16)
    rotated_k = rotate(k.expand(1, tokens, 1, 16), angles)[0, :, 0].reshape(*grid, 16)
    first = (rotated_q[0, 0, 0] @ rotated_k[1, 2, 3]).item()
    second = (rotated_q[1, 1, 1] @ rotated_k[2, 3, 4]).item()
    other = (rotated_q[0, 0, 0] @ rotated_k[1, 2, 2]).item()
    assert first == pytest.approx(second, abs=1e-5)
    assert abs(first - other) > 1e-3


def test_rope_keeps_norms_and_uses_every_channel():
    x = torch.randn(2, 24, 3, 32)
    torch.testing.assert_close(rotate(x, rope_angles((2, 3, 4), 32)).norm(dim=-1), x.norm(dim=-1))
    for head_dim in (8, 16, 24, 32, 64, 128):
        widths = axis_widths(head_dim)
        assert sum(widths) == head_dim
        assert all(width % 2 == 0 and width > 0 for width in widths)


def test_time_embedding_has_unit_norm():
    """Holderrieth & Erives 2025, section 5.1: || sqrt(2/d) [cos, sin] || = 1."""
    torch.testing.assert_close(time_embedding(torch.linspace(0, 1, 7), 64).norm(dim=-1), torch.ones(7))


def test_rms_norm():
    x = torch.randn(3, 8)
    torch.testing.assert_close(RMSNorm(8)(x).square().mean(-1), torch.ones(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_keeps_the_direction_and_gives_each_head_its_gain(dtype):
    """Henry et al. 2020, eq. 4: g q / ||q||, here with the root mean square as the unit of length."""
    x = torch.randn(2, 5, 3, 16).to(dtype)
    norm = HeadNorm(3)
    norm.gain.data[:, 0] = torch.tensor([1.0, 2.0, 0.5])
    out = norm(x)
    assert out.dtype == dtype
    exact = dtype == torch.float32
    torch.testing.assert_close(
        out.float().square().mean(-1).sqrt(),
        norm.gain.data[:, 0].expand(2, 5, 3),
        rtol=1e-5 if exact else 1e-2,
        atol=0,
    )
    similarity = torch.cosine_similarity(out.float(), x.float(), dim=-1)
    torch.testing.assert_close(similarity, torch.ones(2, 5, 3), rtol=0, atol=1e-6 if exact else 1e-4)
    assert torch.equal(norm(torch.zeros(1, 1, 3, 16)), torch.zeros(1, 1, 3, 16))


def test_caption_tokens():
    tokens = CaptionTokens.encode(["", "é", "x" * 50], 8)
    assert tokens.ids.shape == (3, 9)
    assert tokens.ids[0, 0] == 256
    assert tokens.mask.sum(1).tolist() == [1, 3, 9]  # "é" is two bytes
    assert tokens.ids[2, 8] == 256


def test_padding_does_not_change_a_caption():
    torch.manual_seed(0)
    encoder = CaptionEncoder(TextConfig(width=32, depth=2, heads=2, max_bytes=24))
    tokens = CaptionTokens.encode(["a red circle"], 24)
    length = int(tokens.mask.sum())
    changed = CaptionTokens(tokens.ids.masked_fill(~tokens.mask, 7), tokens.mask)
    torch.testing.assert_close(encoder(tokens)[:, :length], encoder(changed)[:, :length])


def test_patchify_and_unpatchify_are_inverse():
    x = torch.randn(2, 3, 4, 6, 8)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 4 * 3 * 4, 3 * 4)
    assert torch.equal(unpatchify(tokens, 2, (4, 3, 4)), x)


def test_dit_starts_at_zero_velocity_and_every_parameter_learns():
    """adaLN-zero: the output is 0, so the first loss is E|v|^2; after two steps every parameter has a gradient."""
    torch.manual_seed(0)
    network = DiT(SMALL_DIT, 4)
    x, t = torch.randn(2, 4, 3, 8, 8), torch.tensor([0.2, 0.8])
    caption = CaptionTokens.encode(["a red circle", ""], 24)
    assert torch.equal(network(x, t, caption), torch.zeros_like(x))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, t, caption) - x).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_dit_reads_its_caption_and_time():
    torch.manual_seed(0)
    network = DiT(SMALL_DIT, 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 4, 3, 8, 8)

    def out(text, t):
        return network(x, torch.tensor([t]), CaptionTokens.encode([text], 24))

    assert not torch.allclose(out("a red circle", 0.5), out("a blue circle", 0.5))
    assert not torch.allclose(out("a red circle", 0.5), out("a red circle", 0.6))


def test_dit_takes_latents_of_any_shape():
    """One network for every bucket: in a larger frame the tokens of a corner keep their places."""
    torch.manual_seed(0)
    network, caption = DiT(SMALL_DIT, 4), CaptionTokens.encode(["a red circle"], 24)
    with torch.inference_mode():
        for shape in ((1, 4, 3, 8, 8), (1, 4, 1, 4, 12), (1, 4, 5, 16, 8)):
            assert network(torch.randn(shape), torch.tensor([0.5]), caption).shape == shape
    x = torch.randn(1, 4, 1, 4, 12)
    network(x, torch.tensor([0.5]), caption).sum().backward()  # what inference has kept serves training
    with pytest.raises(ValueError, match="a latent of 7 x 8 does not split into patches of 2 x 2"):
        network(torch.randn(1, 4, 3, 7, 8), torch.tensor([0.5]), caption)
    large, small = rope_angles((2, 3, 4), 32).reshape(2, 3, 4, -1), rope_angles((1, 2, 2), 32).reshape(1, 2, 2, -1)
    assert torch.equal(large[:1, :2, :2], small)


def test_dit_takes_a_time_per_frame():
    """One time said once or said for every frame is the same; a frame's own time changes what it predicts."""
    torch.manual_seed(0)
    network = DiT(SMALL_DIT, 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, caption = torch.randn(2, 4, 3, 8, 8), CaptionTokens.encode(["a red circle", ""], 24)
    together, per_frame = torch.tensor([0.2, 0.8]), torch.tensor([[[0.2, 0.2, 0.2]], [[0.8, 0.8, 0.8]]])
    torch.testing.assert_close(network(x, per_frame, caption), network(x, together, caption))
    later = per_frame.clone()
    later[0, 0, 2] = 0.9
    changed = (network(x, later, caption) - network(x, per_frame, caption)).abs().amax((1, 3, 4))
    assert changed[1].max() == 0
    assert changed[0, 2] > changed[0, :2].max() > 0  # the other frames see it through attention


def test_dit_config_names_the_nearest_heads():
    with pytest.raises(ValueError, match=r"heads is 5.*use 4 heads"):
        DiTConfig(width=128, heads=5)


def test_autoencoder_shapes():
    network = Autoencoder(SMALL_AE)
    pixels = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    posterior = network.encode(pixels)
    assert posterior.mean.shape == (2, *latent_shape(SMALL_AE, 9, 32, 48)) == (2, 4, 3, 4, 6)
    assert network.decode(posterior.mean).shape == pixels.shape


def test_autoencoder_refuses_lengths_that_are_not_4k_plus_1():
    with pytest.raises(ValueError, match=r"4k \+ 1"):
        Autoencoder(SMALL_AE).encode(torch.zeros(1, 3, 8, 32, 32))


def test_autoencoder_is_causal():
    """Frames 5..8 do not touch the latents of frames 0..4, nor do later latents touch earlier frames."""
    torch.manual_seed(0)
    network = Autoencoder(SMALL_AE)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    one = torch.rand(1, 3, 9, 32, 32)
    other = one.clone()
    other[:, :, 5:] = torch.rand(1, 3, 4, 32, 32)
    z_one, z_other = network.encode(one).mean, network.encode(other).mean
    torch.testing.assert_close(z_one[:, :, :2], z_other[:, :, :2])
    assert not torch.allclose(z_one[:, :, 2], z_other[:, :, 2])
    mixed = torch.cat([z_one[:, :, :2], z_one[:, :, 2:] + 1], dim=2)
    x_one, x_mixed = network.decode(z_one), network.decode(mixed)
    torch.testing.assert_close(x_one[:, :, :5], x_mixed[:, :, :5])
    assert not torch.allclose(x_one[:, :, 5:], x_mixed[:, :, 5:])


def test_a_clip_starts_like_its_own_first_frames():
    """Encoding 5 of 9 frames gives the first 2 of 3 latents: an image is a clip of one frame."""
    network = Autoencoder(SMALL_AE)
    pixels = torch.rand(2, 3, 9, 32, 32)
    whole, start, image = (network.encode(pixels[:, :, :n]).mean for n in (9, 5, 1))
    torch.testing.assert_close(whole[:, :, :2], start, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole[:, :, :1], image, rtol=1e-4, atol=1e-5)


def test_kl_against_torch():
    mean, log_variance = torch.randn(2, 3, 4, 1, 2, 2).unbind(0)
    ours = Posterior(mean, log_variance).kl()
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(ours, theirs)
    assert Posterior(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)).kl().item() == 0


def test_psnr():
    """An error of a tenth of the range is 20 dB."""
    assert psnr_db(squared_error(torch.zeros(1, 8), torch.full((1, 8), 0.2))).item() == pytest.approx(20.0, abs=1e-4)
