"""The record of a flow's choices, under the names of its fields and those that they are stored by."""

import pytest

from models.flow.path import (
    CosinePath,
    PolynomialPath,
    StraightPath,
    VariancePreservingPath,
    path_of,
)
from models.flow.spec import FlowSpec
from pipeline.run.fingerprints import stored


@pytest.mark.parametrize("name", ["caption_dropout", "caption_drop"])
def test_the_old_name_of_the_caption_dropout_is_read_too(name):
    assert FlowSpec.model_validate({name: 0.25}) == FlowSpec(caption_dropout=0.25)


def test_both_names_of_the_caption_dropout_are_refused():
    with pytest.raises(ValueError, match="caption_drop is the old name of caption_dropout: give caption_dropout only"):
        FlowSpec.model_validate({"caption_dropout": 0.25, "caption_drop": 0.25})


def test_records_on_disk_keep_the_old_name():
    spec = FlowSpec(caption_dropout=0.25)
    assert list(stored(spec)) == [
        "path",
        "prediction",
        "loss_weight",
        "times",
        "times_per",
        "caption_drop",
        "null_caption",
    ]
    assert stored(spec)["caption_drop"] == spec.model_dump()["caption_dropout"] == 0.25
    assert FlowSpec.model_validate(stored(spec)) == spec == FlowSpec.model_validate(spec.model_dump())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, StraightPath()),
        ({"sigma_min": 1e-5}, StraightPath(1e-5)),
        ({"path": "cosine"}, CosinePath()),
        ({"path": "vp", "vp_betas": (0.2, 10)}, VariancePreservingPath(0.2, 10.0)),
        ({"path": "polynomial", "power": 3}, PolynomialPath(3.0)),
    ],
)
def test_every_number_of_a_path_is_read(fields, path):
    assert path_of(FlowSpec(**fields)) == path


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"path": "vp", "sigma_min": 0.1}, "sigma_min is of the path straight, and path is vp: leave sigma_min out"),
        ({"vp_betas": (1, 2)}, "vp_betas is of the path vp, and path is straight"),
        ({"power": 3}, "power is of the path polynomial, and path is straight"),
        ({"path": "vp", "vp_betas": (20, 0.1)}, "expected two rates above 0, the smaller one first"),
        ({"prediction": "score", "loss_weight": "velocity"}, "prediction is 'score', but on the straight path"),
        ({"prediction": "score", "path": "vp"}, "grows without bound towards the data: set loss_weight to velocity"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        FlowSpec(**fields)
