"""Records refuse numbers that are not finite; settings replace the home folder and take no truth value for a number."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AllowInfNan, ValidationError

from data.records import Record, Settings, expand_home
from pipeline.report.figures import AutoencoderQuality, Reconstructions

NOT_FINITE = [float("nan"), float("inf"), -float("inf"), "nan", "inf", "1e400"]


class Measured(Record):
    values: tuple[float, ...] = ()
    one: float | None = None
    any_number: Annotated[float, AllowInfNan()] = 0.0


class Chosen(Settings):
    folder: Path | None = None
    count: int | None = None
    is_on: bool = False
    pair: tuple[float, float] = (0.0, 1.0)
    rows: tuple[tuple[int, ...], ...] = ()
    either: bool | int = False


@pytest.mark.parametrize("value", NOT_FINITE, ids=str)
def test_every_number_of_a_record_is_finite_unless_its_field_says_otherwise(value):
    for fields in ({"one": value}, {"values": (0.0, value)}):
        with pytest.raises(ValidationError, match="finite number"):
            Measured.model_validate(fields)
    assert str(Measured.model_validate({"any_number": value}).any_number) == str(float(value))


def test_a_reconstruction_without_an_error_has_an_infinite_ratio():
    quality = AutoencoderQuality(
        ssim=1, flicker_levels=0, high_frequency_share=None, latent_std=[1.0], dead_channels=[]
    )
    infinite = Reconstructions(num_clips=1, psnr_db=float("inf"), psnr_db_min=float("inf"), quality=quality)
    assert infinite.psnr_db == float("inf")


def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Chosen(folder=Path("~/videos")).folder == tmp_path / "videos"
    assert Chosen(folder=Path("videos/~")).folder == Path("videos/~")
    assert [expand_home(path) for path in ("~", "~/a//b", "a~b", "s3://~", "")] == [
        str(tmp_path),
        f"{tmp_path}/a//b",
        "a~b",
        "s3://~",
        "",
    ]
    with pytest.raises(ValueError, match="no such user"):
        expand_home("~nobody-of-that-name")


def test_truth_values_are_no_numbers():
    with pytest.raises(ValidationError, match="true and false are no numbers"):
        Chosen.model_validate({"count": True})
    assert Chosen.model_validate({"count": None, "is_on": True}).is_on


@pytest.mark.parametrize("fields", [{"pair": [False, 0.9]}, {"pair": (0.1, True)}, {"rows": [[1], [2, True]]}])
def test_truth_values_in_a_list_are_no_numbers_either(fields):
    with pytest.raises(ValidationError, match="true and false are no numbers"):
        Chosen.model_validate(fields)
    assert Chosen.model_validate({"either": True}).either is True


@pytest.mark.parametrize("fields", [{"count": 2**63}, {"count": "9" * 4000}, {"rows": [[-(2**64)]]}])
def test_a_number_beyond_64_bits_is_refused(fields):
    with pytest.raises(ValidationError, match="it is no number of 64 bits"):
        Chosen.model_validate(fields)
    assert Chosen(count=2**63 - 1).count == 2**63 - 1


class InAFolder(Settings):
    folder: Path | None = None
    place: str = ""


def test_a_uri_is_no_path():
    with pytest.raises(
        ValidationError, match=r"must be a path, and this is a URI of s3: videos are read .* kept in them by runs_dir"
    ):
        InAFolder.model_validate({"folder": "s3://bucket/runs"})
    assert InAFolder.model_validate({"folder": "a/b", "place": "s3://bucket/runs"}).folder == Path("a/b")
