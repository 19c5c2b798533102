"""The whole run over three hosts, of which one is cut off in training and killed in sampling.

A campaign, since Ray tells a lost host from a slow one by time: it needs a machine that is not busy.
"""

import json

import pytest

from data.files.checksums import file_sha256
from pipeline.checkpoint.read import open_checkpoint
from pipeline.sample.outputs import read_samples
from pipeline.train.monitor.events import read_events
from testing.hosts import can_make_hosts
from testing.store import NUM_PROMPTS
from testing.struck_hosts import STEPS, strike

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not can_make_hosts(), reason="network namespaces are not allowed here"),
]


@pytest.mark.parametrize("from_store", [False, True], ids=["folder", "store"])
def test_a_run_survives_a_host_that_is_cut_off_and_one_that_is_killed(tmp_path, from_store):
    """With its videos drawn, and with videos and prompts in an S3-compatible store that every host reads."""
    struck = strike(tmp_path, from_store=from_store)
    said = struck.log.read_text(encoding="utf-8")
    assert struck.return_code == 0, said[-5000:]
    assert struck.trained_on == (0, 1, 1)  # one on each host that has room
    assert struck.sampled_on == (0, 1, 1)

    training = struck.run_dir / "autoencoder"
    events = read_events(training)
    assert [(event.event, event.world_size) for event in events] == [("started", 2), ("started", 1), ("finished", 1)]
    assert 0 < events[1].step < STEPS
    assert open_checkpoint(training).record.step == STEPS

    clips = read_samples(struck.run_dir / "samples")
    assert len({clip.request.id for clip in clips}) == len(clips)
    assert all(file_sha256(struck.run_dir / "samples" / clip.file) == clip.sha256 for clip in clips)
    report = json.loads((struck.run_dir / "report.json").read_text(encoding="utf-8"))
    assert len(clips) == 2 * NUM_PROMPTS
    assert {scale: compared["num_samples"] for scale, compared in report["compared"].items()} == {
        "3": NUM_PROMPTS,
        "1": NUM_PROMPTS,
    }
