"""The perceptual distance against its formula, and files that hold no network for it."""

import pytest
import torch
from torch import Tensor, nn

from models.autoencoder.config import PerceptualError
from models.autoencoder.perceptual import PerceptualDistance, feature_distance, load_network
from testing.features import Distance, save_script, write_features

CLIPS = torch.rand(2, 2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_equal_directions_have_no_distance_and_opposite_ones_have_four():
    one = [torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(3, 2, 4, 5), torch.ones(3, 6, 1, 1)]
    torch.testing.assert_close(feature_distance(one, [7 * one[0], one[1]]), torch.zeros(3))
    torch.testing.assert_close(feature_distance(one, [one[0], -one[1]]), torch.full((3,), 4.0))
    right = torch.tensor([-4.0, 3.0]).reshape(1, 2, 1, 1).expand(3, 2, 4, 5)
    torch.testing.assert_close(feature_distance(one, [right, one[1]]), torch.full((3,), 2.0))


def test_vectors_of_zeros_have_finite_gradients():
    made = torch.zeros(1, 2, 1, 1, requires_grad=True)
    feature_distance([torch.ones(1, 2, 1, 1)], [made]).sum().backward()
    assert made.grad is not None
    assert made.grad.isfinite().all()


def test_it_is_the_mean_over_frames_of_the_distance_of_features(tmp_path):
    network = write_features(tmp_path / "features.pt")
    pixels, made = CLIPS[0], CLIPS[1].clone().requires_grad_()
    distance = PerceptualDistance(tmp_path / "features.pt")(pixels, made)
    expected = [
        feature_distance(network(pixels[:, :, frame]), network(made.detach()[:, :, frame])) for frame in range(5)
    ]
    torch.testing.assert_close(distance.detach(), torch.stack(expected).mean())
    distance.backward()
    assert made.grad is not None
    assert made.grad.abs().sum() > 0


def test_every_call_gives_the_same_bits(tmp_path):
    """TorchScript would optimise itself after the first calls, and a training that resumes begins with a first call."""
    write_features(tmp_path / "features.pt")
    distance, results = PerceptualDistance(tmp_path / "features.pt"), []
    for _ in range(4):
        made = CLIPS[1].clone().requires_grad_()
        value = distance(CLIPS[0], made)
        value.backward()
        results.append((value.detach(), made.grad))
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_it_computes_in_float32_and_has_no_weights_to_train(tmp_path):
    write_features(tmp_path / "features.pt")
    distance = PerceptualDistance(tmp_path / "features.pt")
    expected = distance(CLIPS[0], CLIPS[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(CLIPS[0], CLIPS[1]), expected)
    assert not isinstance(distance, nn.Module)
    assert not any(weight.requires_grad for weight in load_network(tmp_path / "features.pt").parameters())


def test_a_network_of_two_inputs_gives_the_distance_itself(tmp_path):
    save_script(tmp_path / "distance.pt", Distance())
    distance = PerceptualDistance(tmp_path / "distance.pt")(CLIPS[0], CLIPS[1])
    torch.testing.assert_close(distance, 10 * (CLIPS[0] - CLIPS[1]).square().mean())


class OneMap(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class FlatMaps(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.flatten(1)]


class OneDistance(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).square().mean()


class Three(nn.Module):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return x + y + z


class NotFinite(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x / 0]


class Constant(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.detach()]


class OtherChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (OneMap(), r"returned a tensor \[2, 3, 64, 64\], where a list of maps \(2 c i j\) was expected"),
        (FlatMaps(), r"returned \[a tensor \[2, 12288\]\], where a list"),
        (OneDistance(), r"returned a tensor \[\], where one distance per pair was expected"),
        (Three(), "takes 3 inputs"),
        (NotFinite(), "not finite"),
        (Constant(), "without gradients"),
        (OtherChannels(), r"given images \[2, 3, 64, 64\], fails: .*to have 1 channels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_that_returns_something_else_is_refused(tmp_path, network, told):
    path = tmp_path / "network.pt"
    save_script(path, network)
    with pytest.raises(PerceptualError, match=rf"^autoencoder\.loss\.perceptual\.network: {path}.* {told}"):
        load_network(path)


def test_a_file_that_is_missing_or_something_else_is_refused(tmp_path):
    with pytest.raises(PerceptualError, match=r"none\.pt: there is no such file; give that of a TorchScript network"):
        load_network(tmp_path / "none.pt")
    (tmp_path / "other.pt").write_bytes(b"something else")
    with pytest.raises(PerceptualError, match=r"other\.pt: it holds no TorchScript network: "):
        load_network(tmp_path / "other.pt")
