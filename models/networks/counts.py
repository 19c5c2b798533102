"""Parameters and operations of the diffusion transformer in closed form: what a size costs, before anything is built.

Operations are those of matrix products, two for each multiplication with addition, as `torch.utils.flop_counter`
counts them; norms, activations and sums are left out.
"""

from dataclasses import dataclass

from models.networks.config import DiTConfig
from models.networks.dit_options import AttentionSpan
from models.networks.known_frames import input_channels
from models.text.bytes import NGRAM_LENGTHS, VOCABULARY
from models.text.words import NUM_MARKS


@dataclass(frozen=True)
class Cost:
    """What a part of a network holds, and what it computes for one clip."""

    parameters: int = 0
    forward_flops: int = 0
    backward_flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.forward_flops + other.forward_flops,
            self.backward_flops + other.backward_flops,
        )

    def __mul__(self, number: int) -> "Cost":
        return Cost(self.parameters * number, self.forward_flops * number, self.backward_flops * number)

    @property
    def training_flops(self) -> int:
        """Of a forward and a backward pass."""
        return self.forward_flops + self.backward_flops

    @property
    def training_bytes(self) -> "TrainingBytes":
        """What training in float32 keeps for the parameters."""
        return TrainingBytes(4 * self.parameters, 4 * self.parameters, 8 * self.parameters)


@dataclass(frozen=True)
class TrainingBytes:
    """Memory for the parameters during training with AdamW, on all workers together where ZeRO partitions it.

    Beside it, training needs 4 bytes per parameter for each average of the weights, what ZeRO copies, and activations.
    """

    weights: int
    gradients: int
    optimizer: int
    """Averages of the gradient and of its square."""

    @property
    def total(self) -> int:
        """Of all."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class ClipSize:
    """What the operations of one clip depend on, beside the network."""

    latent_grid: tuple[int, int, int]
    """Positions of the latent in time, height and width."""
    caption_tokens: int | None = None
    """Caption tokens that the network gets, padding included; None: as many as it reads, and the end."""
    num_times: int = 1
    """1, or the number of latent frames where each has a time of its own."""


def linear(inputs: int, outputs: int, rows: int, *, bias: bool = False, from_data: bool = False) -> Cost:
    """A linear layer on `rows` vectors.

    Args:
        from_data: its input has no gradient, so that the backward pass has one product instead of two.
    """
    flops = 2 * inputs * outputs * rows
    return Cost(inputs * outputs + (outputs if bias else 0), flops, flops if from_data else 2 * flops)


def vector(length: int) -> Cost:
    """Parameters that no product involves: gains, tables, embeddings."""
    return Cost(length)


def attention(queries: int, keys: int, width: int) -> Cost:
    """Scores and weighted sums of all heads together."""
    flops = 4 * queries * keys * width
    return Cost(0, flops, 2 * flops)


def dit_cost(config: DiTConfig, channels: int, clip: ClipSize, embedding_width: int | None = None) -> Cost:
    """The whole network, on one clip.

    Args:
        channels: of the latents.
        embedding_width: channels of a pretrained text encoder's embeddings; None: captions are read as bytes or words.

    Raises:
        ValueError: the latent does not split into patches.
    """
    width, patch_area = config.width, config.patch_size**2
    patch_channels, patch_inputs = channels * patch_area, input_channels(channels, config.known_frames) * patch_area
    tokens, times = config.num_tokens(clip.latent_grid), clip.num_times
    words = config.text.most + 1 if clip.caption_tokens is None else clip.caption_tokens
    parts = [
        linear(patch_inputs, width, tokens, bias=True, from_data=True),
        linear(width, width, times, bias=True, from_data=True) + linear(width, width, times, bias=True),  # the time
        _caption_encoder(config, words, embedding_width),
        linear(config.text.width, width, 1, bias=True),
        linear(width, 2 * width, times, bias=True) + linear(width, patch_channels, tokens, bias=True),  # the output
    ]
    num_embedded = sum({"fps": 1, "size": 3}[number] for number in config.clip_conditions)
    parts += [linear(width, width, 1, bias=True, from_data=True), linear(width, width, 1, bias=True)] * num_embedded
    for rows in (times, 1) if config.flow_map else ():  # the length of a jump, and its guidance scale
        parts += [linear(width, width, rows, bias=True, from_data=True), linear(width, width, rows, bias=True)]
    if config.modulation != "per_block":
        parts.append(linear(width, 6 * width, times, bias=True))
    if config.joint_blocks:
        parts.append(linear(config.text.width, width, words, bias=True))
        parts.append(_joint_block(config, tokens, words, times, is_last=False) * (config.joint_blocks - 1))
        parts.append(_joint_block(config, tokens, words, times, is_last=True))
    num_frames = clip.latent_grid[0]
    parts += [_block(config, span, tokens, num_frames, words, times) for span in config.block_spans]
    return sum(parts, Cost())


def _caption_encoder(config: DiTConfig, words: int, embedding_width: int | None) -> Cost:
    text = config.text
    block = _feed_forward(text.width, 4, words) + linear(text.width, 4 * text.width, words)  # qkv and out: 4 widths
    block += vector(2 * text.width) + attention(words, words, text.width)
    if embedding_width is None and text.words is not None:
        start = vector((NUM_MARKS + text.words.buckets) * text.width) + linear(text.width, text.width, words)
    elif embedding_width is None:
        rows = VOCABULARY + text.max_bytes + 1 + len(NGRAM_LENGTHS) * text.ngram_buckets
        start = vector(rows * text.width)
    else:
        start = vector(embedding_width) + linear(embedding_width, text.width, words, bias=True)
    return start + block * text.depth + vector(text.width)


def _feed_forward(width: int, ratio: int, rows: int) -> Cost:
    return linear(width, ratio * width, rows) + linear(ratio * width, width, rows)


def _modulation(config: DiTConfig, num_vectors: int, times: int) -> Cost:
    outputs = num_vectors * config.width
    match config.modulation, config.modulation_rank:
        case "per_block", _:
            return linear(config.width, outputs, times, bias=True)
        case _, None:
            return vector(outputs)
        case _, rank:
            return vector(outputs) + linear(config.width, rank, times) + linear(rank, outputs, times)


def _block(config: DiTConfig, span: AttentionSpan, tokens: int, num_frames: int, words: int, times: int) -> Cost:
    width = config.width
    keys = {"full": tokens, "space": tokens // num_frames, "time": num_frames}[span]
    return sum(
        (
            linear(width, 4 * width, tokens),  # qkv and out
            attention(tokens, keys, width),
            linear(width, 2 * width, tokens) + linear(config.text.width, 2 * width, words),  # query, out; key and value
            attention(tokens, words, width),
            _feed_forward(width, config.mlp_ratio, tokens),
            _modulation(config, 6, times),
            vector(4 * config.heads + width),  # norms
        ),
        Cost(),
    )


def _joint_block(config: DiTConfig, tokens: int, words: int, times: int, *, is_last: bool) -> Cost:
    return sum(
        (
            _stream(config, tokens, times),
            _stream(config, words, 1, is_read_only=is_last),
            attention(tokens if is_last else tokens + words, tokens + words, config.width),
        ),
        Cost(),
    )


def _stream(config: DiTConfig, rows: int, times: int, *, is_read_only: bool = False) -> Cost:
    width = config.width
    if is_read_only:
        return linear(width, 2 * width, rows) + vector(config.heads) + _modulation(config, 2, times)
    layers = linear(width, 4 * width, rows) + _feed_forward(width, config.mlp_ratio, rows)
    return layers + vector(2 * config.heads) + _modulation(config, 6, times)
