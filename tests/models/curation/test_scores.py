"""Models that caption and score pictures, with random weights."""

import json

import numpy as np
import pytest
import torch

from models.curation.captioner import Captioner, check_captioner
from models.curation.folders import CurationModelError
from models.curation.scores import AestheticScore, PictureTextSimilarity, check_similarity
from testing.curation_models import write_brightness_score, write_captioner, write_clip

CPU = torch.device("cpu")
PICTURES = list(np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), np.uint8))


def test_the_aesthetic_score_is_what_the_network_says_of_the_square_in_the_middle(tmp_path):
    score = AestheticScore(write_brightness_score(tmp_path / "score.pt"), 40, CPU)
    expected = [picture[:, 10:50].mean() / 255 for picture in PICTURES]
    assert score(PICTURES) == pytest.approx(expected, rel=1e-5)


def test_a_network_of_another_kind_is_refused_by_name(tmp_path):
    with pytest.raises(CurationModelError, match=r"nothing\.pt: there is no such file"):
        AestheticScore(tmp_path / "nothing.pt", 32, CPU)
    path = tmp_path / "other.pt"
    torch.jit.save(torch.jit.script(torch.nn.Flatten()), path)
    with pytest.raises(CurationModelError, match="must return one finite number"):
        AestheticScore(path, 32, CPU)(PICTURES)


def test_similarity_is_a_cosine_that_does_not_depend_on_the_batch(tmp_path):
    similarity = PictureTextSimilarity(write_clip(tmp_path), CPU)
    texts = ["a red circle", "blue", "a green star moves left"]
    together = similarity(PICTURES, texts)
    alone = [similarity([picture], [text])[0] for picture, text in zip(PICTURES, texts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(-1 <= value <= 1 for value in together)
    assert similarity(PICTURES[:1], ["a red circle " * 40])[0] <= 1  # longer than the model reads


def test_captions_do_not_depend_on_the_batch(tmp_path):
    captioner = Captioner(write_captioner(tmp_path), 6, CPU)
    together = captioner(PICTURES)
    assert together == [captioner([picture])[0] for picture in PICTURES]
    assert all(isinstance(text, str) and len(text.split()) <= 6 for text in together)


def test_folders_of_other_models_are_refused(tmp_path):
    with pytest.raises(CurationModelError, match=r"config\.json cannot be read"):
        check_captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(CurationModelError, match="type llava; supported are blip"):
        check_captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(CurationModelError, match="holds no safetensors"):
        check_similarity(tmp_path)
