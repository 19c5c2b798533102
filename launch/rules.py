"""Rules between sections of the configuration. Each raises ValueError with the fields, their values and the way out."""

from collections.abc import Callable
from math import lcm
from typing import TYPE_CHECKING

from data.dataset.compression import Compression
from models.flow.spec import JUMPING
from pipeline.engine.config import check_can_share, check_tokens
from pipeline.ingest.config import SYNTHETIC
from pipeline.run.weight_names import FIRST_AVERAGE, MASTER
from pipeline.train.batches import check_mixed
from pipeline.train.config import FlowTrainConfig, TrainConfig
from pipeline.train.world_size import fitting_worlds

if TYPE_CHECKING:
    from launch.config import RunConfig


def check_workers(config: "RunConfig") -> None:
    """The workers can share every batch of all trainings."""
    trainings: dict[str, TrainConfig] = {"autoencoder": config.autoencoder.train, "dit": config.dit.train}
    if config.autoencoder.published is not None:
        del trainings["autoencoder"]
    if config.tokenizer is not None:
        trainings["tokenizer"] = config.tokenizer.train
    if config.distill is not None:
        trainings["distill"] = config.distill.train
    for name, train in trainings.items():
        check_shares(config, name, train)
        workers = config.cluster.workers
        fitting = fitting_worlds(train, (), workers.num_workers)
        if fitting and workers.num_required not in fitting:
            nearest = min(fitting, key=lambda number: abs(number - workers.num_required))
            raise ValueError(
                f"cluster.workers.min_workers is {workers.num_required}, but {name}.train.global_batch "
                f"{train.global_batch} does not divide over so many: use {nearest}"
            )


def check_places(config: "RunConfig") -> None:
    """The run is in one place, and machines that share no folder have a store."""
    if not config.is_stored_run:
        if config.local_dir is not None:
            raise ValueError(
                f"local_dir is {config.local_dir}, but runs_dir {config.runs_dir} is a folder, in which the run works: "
                "leave local_dir out, or set runs_dir to the URI of a folder in a store"
            )
        if not config.cluster.shared_folder and config.store is None:
            raise ValueError(
                "cluster.shared_folder is false, so the machines need a store to share: set runs_dir to the URI of a "
                "folder in one"
            )
        return
    if config.store is not None:
        raise ValueError(
            f"runs_dir is {config.runs_dir}, where the run is stored, and store is {config.store}: leave store out"
        )
    if config.cluster.shared_folder:
        raise ValueError(
            f"cluster.shared_folder is true, but runs_dir is {config.runs_dir}, and machines see no folder in a store: "
            "leave cluster.shared_folder out"
        )


def check_shard_parts(config: "RunConfig") -> None:
    """Shards come in parts where machines share no folder, and need no second copy on the disk that they come to."""
    if not config.cluster.shard_parts:
        return
    if config.cluster.shared_folder:
        raise ValueError(
            "cluster.shard_parts is true, but the machines see the shards in a folder that they share: leave "
            "cluster.shard_parts out, or set runs_dir to the URI of a folder in a store"
        )
    trainings: dict[str, TrainConfig | None] = {
        "autoencoder": config.autoencoder.train,
        "tokenizer": None if config.tokenizer is None else config.tokenizer.train,
        "dit": config.dit.train,
        "distill": None if config.distill is None else config.distill.train,
    }
    for name, train in trainings.items():
        if train is not None and train.cache is not None:
            raise ValueError(
                f"{name}.train.cache copies whole shards to a local disk, but with cluster.shard_parts they come to "
                "the disk of each machine in parts: leave one of them out"
            )


def check_reached(config: "RunConfig") -> None:
    """Each machine reaches the videos, where machines share no folder and are not this one alone."""
    if not config.cluster.shared_folder and config.cluster.address is not None:
        refuse_local_videos(config)


def refuse_local_videos(config: "RunConfig") -> None:
    """Refuse videos in a folder, where several machines have none in common.

    Raises:
        ValueError: names the field.
    """
    for name, place in config.data.places.items():
        if place != SYNTHETIC and "://" not in place:
            field = f"data.mix.{name}.source" if name else "data.source"
            raise ValueError(
                f"{field} is the folder {place} of one machine, but the machines share no folder ("
                f"{'runs_dir is in a store' if config.is_stored_run else 'cluster.shared_folder is false'}): put the "
                "videos into an object store, or leave cluster.address out to use this machine alone"
            )


def check_shares(config: "RunConfig", name: str, train: TrainConfig) -> None:
    """All workers together divide the batches of one training."""
    num_workers, together = config.cluster.workers.num_workers, train.sequence_parallel
    if num_workers % together:
        raise ValueError(
            f"{name}.train.sequence_parallel is {together}, but cluster.workers.num_workers {num_workers} do "
            f"not form groups of that many: use {-(-num_workers // together) * together} workers"
        )
    num_shares = num_workers // together
    groups = f" in groups of {together}" if together > 1 else ""
    if train.global_batch % num_shares:
        nearest = max(1, round(train.global_batch / num_shares)) * num_shares
        raise ValueError(
            f"{name}.train.global_batch is {train.global_batch}, but cluster.workers.num_workers {num_workers}{groups} "
            f"must divide it: use {nearest}"
        )
    has_turns = train.mixed_buckets or config.known_buckets is None or len(config.known_buckets) > 1
    if has_turns and train.batch_multiple % num_shares:
        raise ValueError(
            f"{name}.train.batch_multiple is {train.batch_multiple}, but cluster.workers.num_workers "
            f"{num_workers}{groups} must divide it, or not every bucket's batch does: use "
            f"{lcm(train.batch_multiple, num_shares)}"
        )


def check_sequence_parallel(config: "RunConfig") -> None:
    """The workers of a sequence-parallel group can share the heads of the network, if it is one that has tokens."""
    if config.autoencoder.train.sequence_parallel > 1:
        raise ValueError("autoencoder.train.sequence_parallel is for the DiT, which has tokens to share: leave it out")
    check_can_share(config.dit.model, config.dit.train.sequence_parallel)


def check_mixed_buckets(config: "RunConfig") -> None:
    """Only networks that compute packed clips are trained on mixed buckets, with room for each bucket in a step."""
    if config.autoencoder.train.mixed_buckets:
        raise ValueError("autoencoder.train.mixed_buckets is for the DiT, which packs clips: leave it out")
    train, model = config.dit.train, config.dit.model
    if train.mixed_buckets and not model.packs_clips:
        raise ValueError(
            f"dit.train.mixed_buckets is true, but a network of architecture {model.architecture} computes clips of "
            "one shape at a time: set dit.train.mixed_buckets to false, or dit.model.architecture to dit"
        )
    check_mixed(train, len(config.known_buckets or ()))


def check_grid(config: "RunConfig", compression: Compression) -> None:
    """The latents of every bucket split into patches, and these among the workers of a group.

    Args:
        compression: of the autoencoder; that of a published one is known when its folder has been read.
    """
    check_patches(config, compression)
    model, together = config.dit.model, config.dit.train.sequence_parallel
    for bucket in config.known_buckets or ():  # those that are chosen later are checked before the first step
        grid = bucket.latent_grid(compression)
        check_tokens(bucket.name, model.num_tokens(grid) // grid[0], together)


def check_patches(config: "RunConfig", compression: Compression) -> None:
    """The latents of every bucket split into patches."""
    model, choice = config.dit.model, config.data.choose_buckets
    patch, reason = model.patch_size, f"dit.model.{model.patch_field} {getattr(model, model.patch_field)}"
    factor = compression.spatial_factor
    multiple = factor * patch
    if choice is not None and choice.side_multiple % multiple:
        raise ValueError(
            f"data.choose_buckets.side_multiple is {choice.side_multiple}, but with {reason} "
            f"sides are multiples of {multiple}: use {lcm(choice.side_multiple, multiple)}"
        )
    for number, bucket in enumerate(config.known_buckets or ()):
        for side, pixels in (("height", bucket.height), ("width", bucket.width)):
            below = pixels // multiple * multiple
            fitting = f"use {below} or {below + multiple}" if below else f"use {multiple}"
            if pixels % factor:
                raise ValueError(
                    f"data.buckets.{number}.{side} is {pixels}, but the autoencoder takes multiples of {factor}: "
                    f"{fitting}"
                )
            if pixels % multiple:
                raise ValueError(
                    f"data.buckets.{number}.{side} is {pixels}: its latent of {pixels // factor} does not "
                    f"split into patches of {patch}, as {reason} needs: {fitting}"
                )


def check_own_autoencoder(config: "RunConfig") -> None:
    """What follows from the autoencoder, where the configuration describes it."""
    if config.autoencoder.published is None:
        check_grid(config, config.autoencoder.model.compression)


def check_captions(config: "RunConfig") -> None:
    """The network can read the captions as they are encoded."""
    model, text = config.dit.model, config.encode.text
    if model.needs_embeddings and text is None:
        raise ValueError(
            f"dit.model.architecture is {model.architecture}, which reads captions as embeddings, but encode.text is "
            "not set: name the folder of its text encoder in encode.text.folder"
        )
    if text is not None and model.max_text_tokens is not None and text.max_tokens > model.max_text_tokens:
        raise ValueError(
            f"encode.text.max_tokens is {text.max_tokens}, but the network takes at most {model.max_text_tokens}: use "
            f"{model.max_text_tokens}"
        )


def check_given_frames(config: "RunConfig") -> None:
    """What the network is told of given frames is what training gives it."""
    model = config.dit.model
    if model.needs_image:
        raise ValueError(
            f"dit.model.condition_channels is above 0: a network of architecture {model.architecture} that takes the "
            "first frame by channels of its own can be sampled, but not trained; train one without them, such as that "
            "of Wan 2.2 TI2V, and give it first frames by dit.flow.first_frame_share"
        )
    if model.known_frames == "channels" and config.dit.flow.given_share == 0:
        raise ValueError(
            "dit.model.known_frames is 'channels', but dit.flow.first_frame_share is 0, so that no frame is ever given "
            "in training: set first_frame_share above 0, or shares of dit.flow.given, or known_frames to time"
        )


def check_coupling(config: "RunConfig") -> None:
    """Clips that exchange noise are computed together, on any number of workers."""
    train, size = config.dit.train, config.dit.flow.coupled_clips
    num_parts = config.cluster.workers.num_workers // train.sequence_parallel * train.gradient_accumulation_steps
    has_turns = train.mixed_buckets or config.known_buckets is None or len(config.known_buckets) > 1
    for field in ("global_batch", "batch_multiple") if has_turns else ("global_batch",):
        if size > 1 and (number := getattr(train, field)) % (num_parts * size):
            raise ValueError(
                f"dit.flow.coupled_clips is {size}, but dit.train.{field} {number}, in {num_parts} parts (workers "
                "times gradient accumulation steps), does not split into so many clips: use a multiple of "
                f"{num_parts * size}"
            )


def check_flow_map(config: "RunConfig") -> None:
    """A flow map has a network that is told where jumps end, and what teaches it guidance."""
    model, flow = config.dit.model, config.dit.flow
    if model.is_flow_map != (flow.map is not None):
        raise ValueError(
            f"dit.model.flow_map is {str(model.is_flow_map).lower()}, but dit.flow.map is "
            f"{'' if flow.map is None else 'not '}null: set both to train a flow map, which an architecture dit can "
            "be, or neither"
        )
    if flow.map is not None:
        _check_map_training("dit", config.dit.train)
        if flow.map.max_guidance > 1 and config.dit.train.start_from is None:
            raise ValueError(
                f"dit.flow.map.max_guidance is {flow.map.max_guidance:g}, which needs a teacher: name it in "
                "dit.train.start_from, or use the section distill"
            )
    if flow.matching is not None:
        raise ValueError("dit.flow.matching is of students: leave it out, and set distill.kind: distribution_matching")
    if config.distill is None:
        return
    if flow.map is not None or not model.learns_maps:
        reason = "dit.flow.map makes dit one" if flow.map is not None else f"dit is a {model.architecture}"
        raise ValueError(f"distill trains a flow map of a network of architecture dit, but {reason}: leave distill out")
    _check_map_training("distill", config.distill.train)
    for name in ("start_from", "lora"):
        if getattr(config.distill.train, name) is not None:
            raise ValueError(f"distill.train.{name} is set, but a student starts from the network in dit: leave it out")
    try:
        assert config.student_flow is not None
    except ValueError as error:
        raise ValueError(f"distill: {error}") from error


def _check_map_training(section: str, train: FlowTrainConfig) -> None:
    for name in ("mixed_buckets", "lora"):
        if getattr(train, name):
            raise ValueError(f"{section}.train.{name} is set, which a flow map cannot be trained with: leave it out")


def check_tokenizer(config: "RunConfig") -> None:
    """A network that predicts tokens has a tokeniser, and is trained and sampled as such."""
    predicts_tokens, train = config.dit.flow.tokens is not None, config.dit.train
    if predicts_tokens != (config.tokenizer is not None):
        raise ValueError(
            f"dit.flow.tokens is {'not ' if predicts_tokens else ''}null, but tokenizer is "
            f"{'' if predicts_tokens else 'not '}null: set both to train a network that predicts tokens, or neither"
        )
    if config.tokenizer is not None:
        if config.tokenizer.train.mixed_buckets:
            raise ValueError("tokenizer.train.mixed_buckets is set, and the tokeniser takes one shape: leave it out")
        if config.tokenizer.train.sequence_parallel > 1:
            raise ValueError(
                "tokenizer.train.sequence_parallel is above 1, and only the DiT has tokens to share: use 1"
            )
        if config.distill is not None:
            raise ValueError("distill trains a flow map of latents, but dit predicts tokens: leave distill out")
        for name in ("start_from", "lora", "mixed_buckets"):
            if getattr(train, name):
                raise ValueError(f"dit.train.{name} is set, but dit predicts tokens, and cannot have it: leave it out")
    if predicts_tokens != (config.sample.solver == "jumps"):
        raise ValueError(
            f"sample.solver is {config.sample.solver}, but dit predicts "
            + ("tokens: use jumps" if predicts_tokens else "latents: use another solver, or set dit.flow.tokens")
        )


def check_sampling(config: "RunConfig") -> None:
    """The training gives what sampling asks for."""
    section, train = ("dit", config.dit.train) if config.distill is None else ("distill", config.distill.train)
    known = [FIRST_AVERAGE, MASTER, *(profile.name for profile in train.ema)]
    if config.sample.weights not in known:
        raise ValueError(
            f"sample.weights is {config.sample.weights!r}, but {section}.train.ema gives {', '.join(known)}"
        )
    flow = config.student_flow or config.dit.flow
    if config.sample.solver in JUMPING and flow.few_steps is None:
        raise ValueError(
            f"sample.solver is {config.sample.solver}, but no flow map is trained: set distill, or use another solver"
        )
    if flow.matching is not None:
        if config.sample.solver != "renoise":
            raise ValueError(
                f"sample.solver is {config.sample.solver}, but distill.kind is distribution_matching, whose student "
                "jumps to the data from every time: set sample.solver to renoise"
            )
        sample = config.sample
        if (refusal := flow.matching.times_refusal(sample.steps, sample.shift, sample.grid)) is not None:
            raise ValueError(f"sample.{refusal}, or change distill.matching")
    if config.sample.solver in JUMPING and flow.few_steps is not None:
        largest = flow.few_steps.max_guidance
        if not 1 <= config.sample.guidance_scale <= largest:
            name = "dit.flow.map" if config.distill is None else "distill.map"
            name = name if flow.matching is None else "distill.matching"
            raise ValueError(
                f"sample.guidance_scale is {config.sample.guidance_scale:g}, but the flow map is trained with scales "
                f"from 1 to {largest:g}: set {name}.max_guidance to it"
            )
    if config.sample.schedule != "full_sequence" and config.dit.flow.times_per != "frame":
        raise ValueError(
            f"sample.schedule is {config.sample.schedule!r}, but dit.flow.times_per is 'clip': a network that is "
            "trained with one time for all frames cannot be asked for several; set dit.flow.times_per to frame"
        )


RULES: "tuple[Callable[[RunConfig], None], ...]" = (
    check_workers,
    check_places,
    check_reached,
    check_shard_parts,
    check_own_autoencoder,
    check_sequence_parallel,
    check_mixed_buckets,
    check_captions,
    check_given_frames,
    check_coupling,
    check_tokenizer,
    check_flow_map,
    check_sampling,
)
