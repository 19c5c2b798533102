"""The clips of a dataset through WebDataset: every one once, in order, as the index has them."""

from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data.dataset.index import read_index
from data.dataset.reader import PayloadReader
from data.dataset.webdataset_pipeline import open_as_webdataset
from data.errors import DatasetError
from data.video.codec import decode_clip
from testing.datasets import write_dataset, write_mixed_dataset

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # left to the garbage collector


@pytest.mark.parametrize("split", [None, "train", "validation"])
def test_clips_are_those_of_the_index(tmp_path, split):
    folder = write_mixed_dataset(tmp_path)
    rows, reader = list(read_index(folder, split)), PayloadReader(folder)
    pipeline: Any = open_as_webdataset(folder, split)
    clips = list(pipeline)
    assert [clip.record.key for clip in clips] == [row.key for row in rows]
    for clip, row in zip(clips, rows, strict=True):
        assert (clip.caption, clip.record.split) == (row.caption, row.split)
        np.testing.assert_array_equal(clip.frames, decode_clip(reader.read(row)))


def test_a_data_loader_of_torch_reads_it(tmp_path):
    folder = write_mixed_dataset(tmp_path)
    pipeline: Any = open_as_webdataset(folder)
    loader = DataLoader(pipeline, batch_size=None, num_workers=0)
    assert sorted(clip.record.key for clip in loader) == sorted(read_index(folder).values("key"))


def test_latents_are_refused(tmp_path):
    folder = write_dataset(tmp_path, [], kind="latents")
    with pytest.raises(DatasetError, match=r"holds latents; name the folder of a dataset of clips"):
        open_as_webdataset(folder)
