"""Feature networks: the one without a file, and TorchScript files, good and bad."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluate.features import FeatureError, pixels_of, random_convolutions, read_features
from testing.features import save_script

CPU = torch.device("cpu")


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class LikeI3D(nn.Module):
    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.flatten(2).mean(2) + float(rescale) + float(resize) + float(return_features)


class Pictures(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def script(module: nn.Module, path):
    save_script(path, module)
    return path


@pytest.mark.parametrize("num_axes", [2, 3])
def test_features_without_a_file_are_the_same_each_time_and_see_changes(num_axes: int):
    pixels = torch.rand(2, 3, *(7, 40, 48)[-num_axes:], generator=torch.Generator().manual_seed(0)) * 255
    first, second = (random_convolutions(num_axes, CPU).compute(pixels) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (2, 224)
    assert first.isfinite().all()
    assert not torch.allclose(first[0], first[1])


def test_features_of_clips_depend_on_the_order_of_frames():
    pixels = torch.zeros(1, 3, 6, 16, 16)
    pixels[:, :, 3:] = 255
    mixed = pixels[:, :, [0, 3, 1, 4, 2, 5]]
    compute = random_convolutions(3, CPU).compute
    assert (compute(pixels) - compute(mixed)).norm() > 0.05 * compute(pixels).norm()


def test_large_frames_are_shrunk_and_single_frames_taken():
    compute = random_convolutions(3, CPU).compute
    assert compute(torch.full((1, 3, 1, 300, 200), 9.0)).shape == (1, 224)
    small, large = torch.full((1, 3, 2, 64, 128), 99.0), torch.full((1, 3, 2, 256, 512), 99.0)
    assert torch.allclose(compute(small), compute(large), atol=1e-5)


def test_a_torchscript_file_gets_pixels_between_minus_one_and_one(tmp_path):
    network = read_features(script(Means(), tmp_path / "means.pt"), 3, CPU)
    frames = torch.full((4, 8, 8, 3), 255, dtype=torch.uint8)
    assert network.compute(pixels_of(frames)).tolist() == [[1, 1, 1]]
    assert network.name == "means.pt on clips"


def test_i3d_gets_pixels_up_to_255_and_its_options(tmp_path):
    network = read_features(script(LikeI3D(), tmp_path / "i3d.pt"), 3, CPU)
    assert network.compute(torch.full((2, 3, 4, 8, 8), 255.0)).tolist() == [[258] * 3] * 2


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Pictures(), r"gives \(1, 3, 4, 8, 8\) for 1 inputs"),
        (Flat(), r"does not take pixels of shape \(1, 3, 4, 8, 8\)"),
    ],
)
def test_networks_that_do_not_fit_are_refused_by_name(tmp_path, module: nn.Module, message: str):
    path = script(module, tmp_path / "odd.pt")
    with pytest.raises(FeatureError, match=f"odd.pt {message}"):
        read_features(path, 3, CPU).compute(torch.zeros(1, 3, 4, 8, 8))


def test_files_that_are_no_networks_are_refused_by_name(tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(FeatureError, match=r"text.pt: it holds no TorchScript network"):
        read_features(tmp_path / "text.pt", 3, CPU)
    with pytest.raises(FeatureError, match=r"none.pt: there is no such file"):
        read_features(tmp_path / "none.pt", 3, CPU)


def test_fingerprint_is_that_of_the_file(tmp_path):
    one, other = (script(nn.Flatten(number), tmp_path / f"{number}.pt") for number in (1, 2))
    assert read_features(one, 3, CPU).fingerprint != read_features(other, 3, CPU).fingerprint
    assert np.ndim(read_features(one, 3, CPU).compute(torch.zeros(1, 3, 2, 2, 2))) == 2
