"""What memory the encode stage takes by the length of a clip, in chunks and as a whole.

python -m benchmarks.long_clips

Each figure is the peak of a process of its own, the libraries included, with the default autoencoder.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.shards import write_shard
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.encode.config import EncodeConfig
from testing.long_clips import peaks_of_new_process
from testing.records import made_up_clip

RESULT = Path(__file__).parent / "results" / "long_clips.json"
LENGTHS, SIDE, CHUNK_FRAMES = (401, 801, 1601), 128, 100


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory(prefix="reelflow-") as name:
        folder, rows = Path(name), []
        network = Autoencoder(AutoencoderConfig())
        metadata = {"config": network.config.model_dump_json()}
        save_file(network.state_dict(), folder / AUTOENCODER_NAME, metadata=metadata)
        for num_frames in LENGTHS:
            bucket = Bucket(num_frames=num_frames, height=SIDE, width=SIDE, fps=8)
            content = encode_clip(render(random_scene(0, 0, combinations()), num_frames, SIDE), 8)
            shard, _ = write_shard(folder / f"{num_frames}.tar", [(made_up_clip(0, bucket), content)], VIDEO_MEMBER)
            row: dict[str, float] = {"num_frames": num_frames}
            for label, most in (("chunks_mib", CHUNK_FRAMES), ("whole_mib", num_frames + 3)):
                (peak,) = peaks_of_new_process(folder, [(shard, EncodeConfig(chunk_frames=most, precision="fp32"))])
                row[label] = round(peak)
            rows.append(row)
            sys.stdout.write(f"{row}\n")
    figures = {"side": SIDE, "chunk_frames": CHUNK_FRAMES, "torch": torch.__version__, "peaks": rows}
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
