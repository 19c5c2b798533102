"""An S3-compatible store (moto's) that holds synthetic videos, a table of their captions and a file of prompts.

    python -m testing.store ADDRESS

serves it until it is killed, and says "the store is filled" once it holds them.
"""

import json
import sys
import threading

import boto3
import s3fs
from moto.server import ThreadedMotoServer

from data.synthetic import combinations, random_scene, render, training_combinations
from data.video.codec import encode_clip

PORT, BUCKET = 5000, "videos"
TABLE, PROMPTS = f"s3://{BUCKET}/in/table.jsonl", f"s3://{BUCKET}/prompts.txt"
NUM_VIDEOS, NUM_PROMPTS, PIXELS, FPS, NUM_FRAMES = 26, 24, 48, 8, 10
FILLED = "the store is filled"


def environment(address: str) -> dict[str, str]:
    """What the clients of the store at an address find it by."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}:{PORT}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def forget_clients() -> None:
    """Let clients of this process read the environment again: those it has kept know another store and its key."""
    boto3.DEFAULT_SESSION = None
    s3fs.S3FileSystem.clear_instance_cache()


def main() -> None:
    """Serve."""
    address = sys.argv[1]
    ThreadedMotoServer(address, PORT, verbose=False).start()
    store = boto3.client(
        "s3",
        endpoint_url=f"http://{address}:{PORT}",
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )
    store.create_bucket(Bucket=BUCKET)
    rows = []
    for number in range(NUM_VIDEOS):
        scene = random_scene(0, number, training_combinations())
        video = encode_clip(render(scene, NUM_FRAMES, PIXELS), FPS)
        store.put_object(Bucket=BUCKET, Key=f"in/{number}.mp4", Body=video)
        rows.append(json.dumps({"path": f"{number}.mp4", "caption": scene.caption}))
    store.put_object(Bucket=BUCKET, Key="in/table.jsonl", Body="\n".join(rows).encode())
    prompts = [random_scene(1, number, combinations()).caption for number in range(NUM_PROMPTS)]
    store.put_object(Bucket=BUCKET, Key="prompts.txt", Body="\n".join(prompts).encode())
    print(FILLED, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
