"""Curation against known truth: transitions between scenes, duplicates, and filters.

    python -m benchmarks.curation [--only scenes duplicates index filters] [--films N] [--clips FOLDER] [--ours]

Drawn videos (`testing/edits.py`) have transitions, copies and faults that are known; edited real ones are shots of the
test clips with drawn transitions. Real clips as they are show false alarms. Thresholds were chosen on other seeds
(0 to 23, drawn shots mostly of pans and zooms) and on none of the sets of real clips that are edited here. A transition
counts as found if what was found overlaps it, within two frames. With --ours, scenes are only searched by the setting
`transitions`, and the figures of the other detectors stay.
"""

import argparse
import csv
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scenedetect import (
    AdaptiveDetector,
    ContentDetector,
    FrameTimecode,
    HashDetector,
    HistogramDetector,
    SceneDetector,
)
from scenedetect.detectors import ThresholdDetector

from data.curation.filters import Duplicates, perceptual_hash
from data.curation.lookalikes import Lookalikes, describe
from data.curation.measures import clipped_share, logo_share, motion, sharpness
from data.curation.transitions import block_means, edge_energy, find_transitions
from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.files.publish import publish_text
from data.records import Frames
from data.video.codec import decode_clip, encode_clip
from data.video.decoders.selection import timelines
from data.video.extract import read_spans
from data.video.probe import probe_video
from data.video.resize import resize_and_crop
from data.video.spans import Transition
from testing.edits import HEIGHT, MOTIONS, WIDTH, Edit, KnownEdit, Motion, add_flash, add_noise, draw_shot, join
from testing.paths import CLIPS_DIR

RESULT = Path(__file__).parent / "results" / "curation.json"
FPS = 24
FIRST_SEED, FAST_SEED = 1000, 5000
TOLERANCE = 2  # frames
KINDS: tuple[tuple[Edit, int], ...] = (("cut", 0), ("black", 24), ("dissolve", 12), ("dissolve", 24), ("dissolve", 48))
SHOT_SETS = ("gmdcsa_fall", "asl_gestures", "ut_interaction")  # each video is one shot
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
Finder = Callable[[Frames], list[Transition]]
Film = tuple[Frames, list[KnownEdit]]


def by_library(make: Callable[[], SceneDetector]) -> Finder:
    """The cuts of one of PySceneDetect's detectors with its defaults, scenes of any length."""

    def find(frames: Frames) -> list[Transition]:
        detector, cuts = make(), []
        for index, frame in enumerate(frames):
            found = detector.process_frame(FrameTimecode(index, fps=float(FPS)), np.ascontiguousarray(frame[..., ::-1]))
            cuts += [cut.frame_num for cut in found]
        cuts += [cut.frame_num for cut in detector.post_process(FrameTimecode(len(frames) - 1, fps=float(FPS)))]
        return [Transition(cut, cut) for cut in sorted(set(cuts))]

    return find


def ours(frames: Frames) -> list[Transition]:
    """The setting `transitions`."""
    edges = np.array([edge_energy(frame) for frame in frames])
    return find_transitions(np.stack([block_means(frame) for frame in frames]), edges, FPS)


FINDERS: dict[str, Finder] = {
    "content (PySceneDetect, the setting `content`)": by_library(lambda: ContentDetector(min_scene_len=1)),
    "adaptive (PySceneDetect)": by_library(lambda: AdaptiveDetector(min_scene_len=1)),
    "hash (PySceneDetect)": by_library(lambda: HashDetector(min_scene_len=1)),
    "histogram (PySceneDetect)": by_library(lambda: HistogramDetector(min_scene_len=1)),
    "threshold (PySceneDetect)": by_library(lambda: ThresholdDetector(min_scene_len=1)),
    "the setting `transitions`": ours,
}


def drawn_films(number: int, motions: tuple[Motion, ...] = MOTIONS, first_seed: int = FIRST_SEED) -> Iterator[Film]:
    """Films of seven shots, some with flashes, and every kind of transition."""
    for seed in range(first_seed, first_seed + number):
        generator = np.random.default_rng(seed)
        shots = []
        for _ in range(7):
            shot = draw_shot(generator, int(generator.integers(84, 130)), motions[generator.integers(len(motions))])
            if generator.random() < 0.4:
                strength = generator.uniform(0.4, 1)
                shot = add_flash(shot, int(generator.integers(50, 64)), int(generator.integers(1, 6)), strength)
            shots.append(shot)
        yield edited(generator, shots)


def edited(generator: np.random.Generator, shots: list[Frames]) -> Film:
    """Shots joined by all kinds of transitions in a drawn order, with noise."""
    order = [KINDS[index % 5] for index in generator.permutation(len(shots) - 1)]
    frames, known = join(shots, [kind for kind, _ in order], [length for _, length in order])
    return add_noise(frames, generator, 2.0), known


def real_shots(clips: Path, sets: Iterable[str], most: int) -> dict[str, Frames]:
    """The first four seconds of real videos at 24 frames per second; of each set at most `most`, evenly chosen."""
    bucket, shots = Bucket(num_frames=97, height=HEIGHT, width=WIDTH, fps=FPS), {}
    for name in sets:
        paths = [path for path in videos_of(clips) if path.startswith(f"{name}/")]
        for path in paths[:: max(1, len(paths) // most)]:
            try:
                shots[path] = read_spans(clips / path, [bucket], 1)[0].frames
            except (VideoError, OSError):
                continue
    return shots


def videos_of(clips: Path) -> list[str]:
    """The files of the manifest."""
    with (clips / "MANIFEST.csv").open(encoding="utf-8") as file:
        return [row["file"] for row in csv.DictReader(file)]


def real_films(shots: dict[str, Frames], number: int) -> Iterator[Film]:
    """Films of six real shots each."""
    for seed in range(FIRST_SEED, FIRST_SEED + number):
        generator = np.random.default_rng(seed)
        chosen = generator.choice(sorted(shots), 6, replace=False)
        yield edited(generator, [shots[name] for name in chosen])


def score(films: Iterable[Film], finders: Mapping[str, Finder]) -> dict[str, dict[str, object]]:
    """Recall by kind of transition, and false alarms, of each finder."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    total: Counter[str] = Counter()
    seconds = 0.0
    for frames, known in films:
        seconds += len(frames) / FPS
        kinds = [edit.kind if edit.kind != "dissolve" else f"dissolve {edit.num_frames / FPS:g} s" for edit in known]
        total.update(kinds)
        for name, finder in finders.items():
            started = time.process_time()
            transitions = finder(frames)
            found[name]["cpu_ms"] += round(1000 * (time.process_time() - started))
            used: set[int] = set()
            for edit, kind in zip(known, kinds, strict=True):
                hits = {
                    index
                    for index, item in enumerate(transitions)
                    if item.start <= edit.end + TOLERANCE and item.end >= edit.start - TOLERANCE
                }
                found[name][kind] += bool(hits)
                used |= hits
            found[name]["false alarms"] += len(transitions) - len(used)
    return {
        name: {
            "recall": {kind: f"{counts[kind]} of {total[kind]}" for kind in sorted(total)},
            "false_alarms": counts["false alarms"],
            "minutes": round(seconds / 60, 1),
            "cpu_ms_per_frame": round(counts["cpu_ms"] / (seconds * FPS), 2),
        }
        for name, counts in found.items()
    }


def measure_scenes(clips: Path, num_films: int, finders: Mapping[str, Finder]) -> dict[str, object]:
    """Films with known transitions, and real videos as they are."""
    shots = real_shots(clips, SHOT_SETS, 3 * num_films)
    alone = {name: sum(len(finder(shot)) for shot in shots.values()) for name, finder in finders.items()}
    files = {}
    for name in ("robust_pyscenedetect/fades.mp4", "robust_moviepy/chaplin.mp4"):
        timeline = next(timelines(clips / name, probe_video(clips / name)))
        frames = np.stack(
            [
                resize_and_crop(frame[None], HEIGHT, WIDTH)[0]
                for frame in timeline.read(list(range(len(timeline.times_seconds))))
            ]
        )
        files[name] = {
            finder_name: [[item.start, item.end] for item in found] if len(found) <= 10 else f"{len(found)} transitions"
            for finder_name, found in ((finder_name, finder(frames)) for finder_name, finder in finders.items())
        }
    return {
        "drawn": score(drawn_films(num_films), finders),
        "drawn_fast": score(drawn_films(num_films, ("pan", "zoom"), FAST_SEED), finders),
        "real_shots_edited": score(real_films(shots, num_films), finders),
        "real_shots_alone": {"shots": len(shots), "false_alarms": alone},
        "real_files": files,
    }


def copies(generator: np.random.Generator) -> dict[str, Callable[[Frames], Frames]]:
    """Ways to copy a clip; all but the first are shrunk and encoded again."""

    def cropped(share: float, top: float, left: float) -> Callable[[Frames], Frames]:
        def crop(clip: Frames) -> Frames:
            _, height, width, _ = clip.shape
            high, wide = round(height * (1 - share)), round(width * (1 - share))
            y, x = round((height - high) * top), round((width - wide) * left)
            return resize_and_crop(clip[:, y : y + high, x : x + wide], height, width)

        return crop

    def place() -> tuple[float, float]:
        return float(generator.random()), float(generator.random())

    return {
        "as it is": lambda clip: clip,
        "encoded again": lambda clip: clip,
        "brighter": lambda clip: (clip * 0.8 + 40).astype(np.uint8),
        "mirrored": lambda clip: clip[:, :, ::-1],
        "cropped by 5 %, anywhere": lambda clip: cropped(0.05, *place())(clip),
        "cropped by 10 %, anywhere": lambda clip: cropped(0.10, *place())(clip),
        "cropped by 10 % on each side": cropped(0.20, 0.5, 0.5),
        "mirrored and cropped by 10 %": lambda clip: cropped(0.10, *place())(clip)[:, :, ::-1],
    }


def measure_duplicates(clips: Path) -> dict[str, object]:
    """Copies of drawn and real clips that are found, and different clips that are taken for copies."""
    generator = np.random.default_rng(FIRST_SEED)
    drawn = {str(i): draw_shot(generator, 24, MOTIONS[i % 5])[::3] for i in range(30)}
    bucket, real = Bucket(num_frames=9, height=96, width=128, fps=8), {}
    for path in videos_of(clips):
        if path.split("/")[0] in (*SHOT_SETS, "colored_shapes"):
            try:
                real[path] = read_spans(clips / path, [bucket], 1)[0].frames
            except (VideoError, OSError):
                continue
    return {"drawn": _duplicate_table(drawn, 30), "real": _duplicate_table(real, 60)}


def _duplicate_table(clips: dict[str, Frames], num_copied: int) -> dict[str, object]:
    searches = {
        "same, 8 bits": (Duplicates(8), lambda clip: f"{perceptual_hash(clip):x}"),
        "same, 24 bits": (Duplicates(24), lambda clip: f"{perceptual_hash(clip):x}"),
        "mirrored_or_cropped, 24 bits": (Lookalikes(24), describe),
    }
    table: dict[str, object] = {"clips": len(clips), "copied": num_copied}
    ways = copies(np.random.default_rng(FIRST_SEED + 1))
    chosen = list(clips)[:: max(1, len(clips) // num_copied)][:num_copied]
    made: dict[str, dict[str, Frames]] = {}
    for way, copy in ways.items():
        made[way] = {name: copy(clips[name]) for name in chosen}
        if way != "as it is":
            made[way] = {
                name: decode_clip(
                    encode_clip(resize_and_crop(clip, 72, 72 * clip.shape[2] // clip.shape[1]), 8, crf=28)
                )
                for name, clip in made[way].items()
            }
    for search, (seen, signature) in searches.items():
        false: Counter[str] = Counter()
        for name, clip in clips.items():
            if seen.find(signature(clip)) is not None:
                false[name.split("/")[0] if "/" in name else "drawn"] += 1
            seen.keep(signature(clip), name)
        found = {way: sum(seen.find(signature(clip)) is not None for clip in made[way].values()) for way in made}
        table[search] = {"found": found, "different_clips_taken_for_copies": dict(false)}
    return table


def measure_index(sizes: tuple[int, ...] = (10_000, 30_000, 100_000)) -> list[dict[str, float]]:
    """Time and memory of the search among many drawn descriptions: noise with the spectrum of photographs."""
    import data.curation.lookalikes as module

    generator, process = np.random.default_rng(0), psutil.Process()
    down, across = np.mgrid[: module.STORED, : module.STORED]

    def describe_noise() -> str:
        spectrum = generator.standard_normal((module.STORED, module.STORED)) / np.maximum(np.hypot(down, across), 1)
        change = 0.2 * generator.standard_normal((3, module.STORED, module.STORED))
        spectra = (spectrum + change / np.maximum(np.hypot(down, across), 1)) * 20 * module._weights()
        spectra[:, 0, 0] = 0
        scale = np.float32(np.abs(spectra).max() / 127)
        return module.b64encode(scale.tobytes() + (spectra / scale).round().astype(np.int8).tobytes()).decode()

    before = process.memory_info().rss
    seen, rows, kept, false = Lookalikes(24), [], 0, 0
    for size in sizes:
        started = time.process_time()
        while kept < size:
            seen.keep(describe_noise(), str(kept))
            kept += 1
        keeping = time.process_time() - started
        queries = [describe_noise() for _ in range(40)]
        started = time.process_time()
        false += sum(seen.find(query) is not None for query in queries)
        rows.append(
            {
                "clips": size,
                "find_ms": round(1000 * (time.process_time() - started) / len(queries), 2),
                "seconds_to_draw_and_keep": round(keeping, 1),
                "mib": round((process.memory_info().rss - before) / 2**20, 1),
                "unrelated_taken_for_copies": false,
            }
        )
        print(rows[-1], flush=True)
    return rows


def measure_filters() -> dict[str, object]:
    """How many drawn clips with and without a fault are on the right side of a threshold."""
    generator = np.random.default_rng(FIRST_SEED + 2)
    clips = [draw_shot(generator, 48, MOTIONS[number % 5])[::3] for number in range(20)]
    marked = [clip.copy() for clip in clips]
    for number, clip in enumerate(marked):
        opacity = 0.5 if number % 2 else 1.0
        stripes = 255 * (np.indices((20, 40)).sum(0) // 4 % 2)[..., None]
        clip[:, 8:28, 8:48] = ((1 - opacity) * clip[:, 8:28, 8:48] + opacity * stripes).astype(np.uint8)
    blurred = [resize_and_crop(resize_and_crop(clip, HEIGHT // 3, WIDTH // 3), HEIGHT, WIDTH) for clip in clips]
    over = [np.clip(clip.astype(np.float32) * 1.6 + 60, 0, 255).astype(np.uint8) for clip in clips]
    still = [np.repeat(clip[:1], len(clip), 0) for clip in clips]
    # Only where most of the picture moves can a mark be told from it.
    moves = [number for number in range(20) if MOTIONS[number % 5] != "still"]

    def luma(clip: Frames) -> np.ndarray:
        return clip.astype(np.float32) @ LUMA

    def row(good: list[float], faulty: list[float], threshold: float, is_minimum: bool) -> dict[str, object]:
        def fails(value: float) -> bool:
            return value < threshold if is_minimum else value > threshold

        return {
            "threshold": threshold,
            "faulty_left_out": f"{sum(map(fails, faulty))} of {len(faulty)}",
            "good_left_out": f"{sum(map(fails, good))} of {len(good)}",
            "range_of_good": [round(min(good), 4), round(max(good), 4)],
            "range_of_faulty": [round(min(faulty), 4), round(max(faulty), 4)],
        }

    pans = [motion(clip, 8) for number, clip in enumerate(clips) if MOTIONS[number % 5] == "pan"]
    others = [motion(clip, 8) for number, clip in enumerate(clips) if MOTIONS[number % 5] != "pan"]
    return {
        "min_motion": row([motion(clip, 8) for clip in clips], [motion(clip, 8) for clip in still], 0.01, True),
        "max_motion (pans are the faulty)": row(others, pans, 0.5, False),
        "min_sharpness": row([sharpness(luma(c)) for c in clips], [sharpness(luma(c)) for c in blurred], 0.55, True),
        "max_clipped_share": row(
            [clipped_share(luma(c)) for c in clips], [clipped_share(luma(c)) for c in over], 0.1, False
        ),
        "max_logo_share": row(
            [logo_share(luma(clips[n])) for n in moves], [logo_share(luma(marked[n])) for n in moves], 0.005, False
        ),
    }


def main() -> None:
    """Measure and print; the results of parts that are not repeated stay in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["scenes", "duplicates", "index", "filters"])
    parser.add_argument("--films", type=int, default=6, help="drawn ones, and as many of real shots")
    parser.add_argument("--clips", type=Path, default=CLIPS_DIR)
    parser.add_argument("--ours", action="store_true", help="scenes only by the setting `transitions`")
    arguments = parser.parse_args()
    finders = {name: finder for name, finder in FINDERS.items() if finder is ours or not arguments.ours}
    parts: dict[str, Callable[[], object]] = {
        "filters": measure_filters,
        "duplicates": lambda: measure_duplicates(arguments.clips),
        "scenes": lambda: measure_scenes(arguments.clips, arguments.films, finders),
        "index": measure_index,
    }
    for name, measure in parts.items():
        if name in arguments.only:
            measured = {name: measure()}
            print(json.dumps(measured, indent=1), flush=True)
            earlier = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
            result = updated(earlier, measured) if arguments.ours else earlier | measured
            publish_text(RESULT, json.dumps(result, indent=1) + "\n")


def updated(earlier: Any, measured: Any) -> Any:  # noqa: ANN401 - JSON values
    """Measured values in place of the earlier ones, at any depth."""
    if not (isinstance(earlier, dict) and isinstance(measured, dict)):
        return measured
    return earlier | {name: updated(earlier.get(name), value) for name, value in measured.items()}


if __name__ == "__main__":
    main()
