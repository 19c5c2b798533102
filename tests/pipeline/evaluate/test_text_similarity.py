"""The similarity of clips to texts, with a small CLIP model of random weights, written and read as files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from pipeline.evaluate.features import FeatureError
from pipeline.evaluate.text_similarity import TextSimilarity, similarity_fingerprint
from testing.text_encoders import write_tokenizer


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    num_words = write_tokenizer(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": num_words, "max_position_embeddings": 8, "eos_token_id": 1},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_score_is_the_mean_cosine_over_the_frames(clip_dir):
    similarity = TextSimilarity(clip_dir, torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3), np.uint8)
    text = "a red circle moves left"
    single = [similarity.score(frame[None], text) for frame in frames]
    assert similarity.score(frames, text) == pytest.approx(np.mean(single), abs=1e-5)
    assert all(-1 <= score <= 1 for score in single)
    assert len({round(score, 6) for score in single}) == 3
    assert similarity.score(frames, "a blue square moves up") != pytest.approx(similarity.score(frames, text))


def test_long_texts_are_cut_at_the_length_of_the_model(clip_dir):
    similarity = TextSimilarity(clip_dir, torch.device("cpu"))
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    assert np.isfinite(similarity.score(frames, "red " * 50))


def test_folders_without_a_model_are_refused_by_name(tmp_path, clip_dir):
    with pytest.raises(FeatureError, match="none: there is no such folder"):
        similarity_fingerprint(tmp_path / "none")
    with pytest.raises(FeatureError, match=f"{tmp_path.name} holds no CLIP model that can be loaded"):
        TextSimilarity(tmp_path, torch.device("cpu"))
    assert similarity_fingerprint(clip_dir) != similarity_fingerprint(tmp_path)
