"""The whole run over three hosts that share nothing but an S3-compatible store, compared with a run on one disk.

A campaign, as `test_hosts.py`: it needs root, and a machine that is not busy.
"""

import pytest

from pipeline.train.monitor.events import read_events
from testing.apart_hosts import LONG, STEPS, run_on_one_disk, strike_apart, working_folder
from testing.hosts import can_make_hosts

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not can_make_hosts(), reason="network namespaces are not allowed here"),
]


def test_hosts_that_share_a_store_alone_make_the_same_bytes_as_one_disk(tmp_path):
    """One is lost in training, and then the command with its folder; no host but the first ever has the whole run."""
    struck = strike_apart(tmp_path / "apart")
    said = struck.log.read_text(encoding="utf-8")
    assert struck.return_code == 0, said[-5000:]
    apart, disk = struck.run_dir, run_on_one_disk(tmp_path)
    assert [event.world_size for event in read_events(apart / "autoencoder")] == [2, 2, 2]  # started, started, finished
    made = ("videos/*/*.mp4", "clips/*.tar", "latents/*.tar", "samples/*.mp4")
    made += (f"autoencoder/checkpoints/step_{STEPS:07d}/rank_*", f"dit/checkpoints/step_{LONG:07d}/rank_*")
    names = [
        sorted(path.relative_to(folder) for pattern in made for path in folder.glob(pattern))
        for folder in (apart, disk)
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 80
    assert [name for name in names[0] if (apart / name).read_bytes() != (disk / name).read_bytes()] == []
    for other in (2, 3):
        folder = working_folder(tmp_path / "apart" / f"runs-of-host{other}")
        assert list(folder.glob("latents/*.tar")) + list(folder.glob("latents/*.tar.part"))
        assert other == 2 or list(folder.glob("clips/*.tar.part"))  # host 3 came back with an empty folder
        assert not list(folder.glob("samples/manifest.jsonl"))
        assert not (folder / "config.yaml").exists()
