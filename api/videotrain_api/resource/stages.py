"""The stages of a run: what each task needs to know.

A stage names its `task` and carries the member of the same name, as Kubernetes unions do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import Field

from videotrain_api.resource import sampling
from videotrain_api.resource.evaluation import EvaluateTask
from videotrain_api.resource.locations import Location
from videotrain_api.resource.pool import Money, Pool
from videotrain_api.resource.sources import SourceWeights
from videotrain_api.resource.stage_names import Resolution, StageName
from videotrain_api.schema import ApiModel, patterned

Task = Literal["curate", "autoencoder", "encode", "train", "sample", "evaluate"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)
"""Also the names of the members of a stage."""
ConditionKind = Literal[
    "t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail", "v2v_head_easy", "v2v_tail_easy"
]
"""Which frames of a clip are given: none, the first, the last, both, or 32 (`_easy`: 64) frames at its start or end; a
causal autoencoder takes one frame more."""
Recompute = Literal["none", "selective", "full"]
"""What a block computes again in the backward pass instead of keeping it: nothing; all but the outputs of matrix
products, convolutions, attention and exchanges between ranks; everything but its inputs."""
Scorer = Literal["steadiness", "motion", "sharpness"]
"""What the best of several candidates is chosen by."""

EngineName = Literal["deepspeed", "fsdp2"]
"""Who shards a model's training state: DeepSpeed's ZeRO, or torch's fully sharded data parallelism."""
BaseQuantization = Literal["none", "int8", "fp8"]
"""What an adapter's frozen base is held in: the data type of training, or 8 bits with a scale for each row."""
Offload = Literal["none", "optimizer"]
"""What lies in the host's memory: nothing, or master weights and moments, which are then updated there."""

AttentionKernel = Literal["auto", "cudnn", "flash", "flash2", "flash3", "flash4", "math"]
"""What attention runs on: cuDNN, torch's own FlashAttention, the packages of FlashAttention 2, 3 and 4, or products."""

PromptStyle = Literal["plain", "fps", "motion", "fps-motion"]
"""What follows a caption in the text that is encoded: nothing, the frame rate, the motion score, or both."""
TextForm = Literal["stored", "online"]
"""Whether an encoded set has the features of captions, or the captions, which are encoded beside training."""


ScoreName = Literal[
    "motion", "blur", "duration", "aspect", "jitter", "border", "watermark", "text", "change", "aesthetic"
]
"""Scores of a clip, columns of its catalogue; docs/how-to/curate.md says what each measures."""


class NodeBounds(ApiModel):
    """How many nodes a stage may use. The operator decides the number within the bounds."""

    min: int = Field(default=1, ge=1, le=4096)
    """Fewest nodes that training goes on with; below it the run waits."""
    max: int = Field(default=1, ge=1, le=4096)
    """Most nodes that are asked for."""
    allowed: list[int] | None = Field(default=None, min_length=1, max_length=64)
    """The only node counts to use, if not every number from min to max; ascending."""


def node_counts(bounds: NodeBounds) -> Sequence[int]:
    """Node counts that the bounds permit, ascending."""
    if not bounds.allowed:
        return range(bounds.min, bounds.max + 1)
    return [n for n in bounds.allowed if bounds.min <= n <= bounds.max]


class ScoreBounds(ApiModel):
    """Keeps the clips whose score lies within the bounds."""

    score: ScoreName
    """Column of the clip manifest."""
    min: float | None = None
    """Lowest score kept; no bound if unset."""
    max: float | None = None
    """Highest score kept; no bound if unset."""


class Subset(ApiModel):
    """Clips by their scores."""

    name: StageName
    """Unique name."""
    select: list[ScoreBounds] = Field(min_length=1, max_length=16)
    """All must hold."""


CAPTION_PROMPT: Final = (
    "Describe this video clip in one paragraph of 75 words or more: its subjects, what they do, the surroundings, "
    "light and atmosphere, how the camera moves, and the style. Tell only what can be seen."
)


class CaptionEndpoint(ApiModel):
    """A model that captions clips, behind an OpenAI-compatible endpoint such as vLLM's."""

    url: Annotated[str, patterned(r"^https?://[^\s]+$", "an http:// or https:// URL", max_length=2048)]
    """Base of the API, such as http://vllm:8000/v1."""
    model: str = Field(min_length=1, max_length=256)
    """Name of the model there."""
    prompt: str = Field(default=CAPTION_PROMPT, min_length=1, max_length=10_000)
    """What is asked about the frames."""
    frames: int = Field(default=8, ge=1, le=64)
    """Frames of a clip that are shown, spread over it."""
    frame_side: int = Field(default=512, ge=32, le=4096)
    """Longer side of a frame, pixels."""
    max_tokens: int = Field(default=512, ge=1, le=65_536)
    """Longest answer."""
    language: Annotated[str, patterned(r"^[a-z]{2}$", "two letters of ISO 639-1", max_length=2)] | None = None
    """Captions in another language are asked for once more, then counted as missing; any will do if unset."""
    replace: bool = False
    """Also caption clips of videos that have a text of their own."""
    concurrency: int = Field(default=32, ge=1, le=1024)
    """Requests at a time."""
    tries: int = Field(default=6, ge=1, le=100)
    """Of one clip, while the endpoint is overloaded, fails or is cut off."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Longest time for one answer."""
    key_env: str = Field(default="OPENAI_API_KEY", min_length=1, max_length=256)
    """Variable of the worker's environment that holds the API's key; no key is sent where it is not set."""
    price_per_million_prompt_tokens: Money = "0"
    """What is paid, decimal string in pool.currency."""
    price_per_million_completion_tokens: Money = "0"
    """What is paid, decimal string in pool.currency."""


class ImageModel(ApiModel):
    """A CLIP or SigLIP model that looks at three frames of each clip: for the aesthetic score, and for look-alikes."""

    weights: Location
    """Folder with config.json, preprocessor_config.json and *.safetensors, as transformers stores them: on every node,
    or s3://, which is fetched once per pod."""
    head: Location | None = None
    """File of an aesthetic predictor over the model's embeddings, .safetensors or .pth: linear layers one after the
    other, as LAION publishes them. Unset: the model's own tensors layers.*, where there are such, else no score."""


ShotDetector = Literal["content", "transnetv2"]
"""What finds cuts: PySceneDetect's detector of changes beside one of dissolves, or the network TransNet V2."""

UnitEngine = Literal["local", "ray"]
"""Who does the units of a stage: the processes of its pods, or Ray Data in a cluster that the pods form."""


class CurateTask(ApiModel):
    """Raw videos to clips: probe, shots, borders, scores, drops with reasons, normalised mp4 files.

    Bounds on scores of clips (motion, change, blur, jitter, border, watermark, text, aesthetic), dedupDistance,
    dedupCosine and dropSources may change without a video being read again; the others decide what is read and written.
    """

    engine: UnitEngine = "local"
    """Who does the videos: the processes of the pods, or Ray Data in a cluster that the pods form. Either goes on where
    the other was."""
    min_seconds: float = Field(default=2.0, gt=0)
    """Shortest video and shortest clip kept, seconds."""
    max_seconds: float = Field(default=8.0, gt=0)
    """Longer shots are cut into pieces of this length, seconds."""
    min_fps: float = Field(default=16.0, gt=0)
    """Lowest frame rate of a raw video, frames per second."""
    min_bits_per_pixel: float = Field(default=0.02, ge=0)
    """Lowest bit rate per pixel and frame of a raw video."""
    min_aspect: float = Field(default=1 / 3, gt=0)
    """Lowest width / height."""
    max_aspect: float = Field(default=3.0, gt=0)
    """Highest width / height."""
    drop_codecs: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        default_factory=lambda: ["h264/Constrained Baseline"], max_length=64
    )
    """Raw videos of these codecs are dropped: FFmpeg's name of a codec, or name/profile."""
    drop_sources: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=1000
    )
    """Raw videos whose path below spec.dataset.videos fits one of these patterns (* ? [...]) are dropped unread."""
    shot_detector: ShotDetector = "content"
    """What finds cuts and dissolves. transnetv2 takes as much processor time as all the rest, and needs the trainer's
    extra `transnetv2`; docs/how-to/curate.md compares them."""
    shot_threshold: float = Field(default=27.0, gt=0)
    """Content change (HSV distance, 0-255) that counts as a cut for the detector `content`."""
    shot_probability: float = Field(default=0.4, gt=0, lt=1)
    """Probability of a transition that counts as one for the detector `transnetv2`."""
    min_motion: float = Field(default=0.05, ge=0)
    """Lowest motion score: FFmpeg's vmafmotion at 256 lines, grey levels by which neighbouring frames differ."""
    min_change: float = Field(default=3.0, ge=0)
    """Lowest change: grey levels by which blocks of the picture differ over an eighth of the clip. A still picture
    under a sensor's noise has about 1."""
    max_motion: float = Field(default=60.0, gt=0)
    """Highest motion score."""
    min_blur: float = Field(default=5.0, ge=0)
    """Lowest sharpness (variance of the Laplacian at 256 lines, majority of five frames)."""
    max_jitter: float = Field(default=1.5, gt=0)
    """Most shake: change of the picture's shift from frame to frame, percent of its height."""
    max_border: float = Field(default=0.5, ge=0, le=1)
    """Largest share of the picture that black borders may take. Smaller ones are cut off."""
    max_watermark: float = Field(default=0.002, ge=0, le=1)
    """Largest share of the picture that marks may take which stand still while the scene moves."""
    text_area: bool = False
    """Look for written text (PP-OCRv4 on three frames), a second of a core for each clip. Needs the trainer's extra
    `curate` and rapidocr-onnxruntime; docs/how-to/curate.md."""
    max_text: float = Field(default=0.05, ge=0, le=1)
    """Largest share of the picture that text may take, where textArea looks for it."""
    image_model: ImageModel | None = None
    """Measure how a trained eye likes the clip (aesthetic), and find look-alikes by embeddings as well as by hashes."""
    min_aesthetic: float | None = None
    """Lowest aesthetic score, about 1 to 10, where imageModel measures it; none is dropped for it if unset."""
    dedup_distance: int = Field(default=4, ge=0, le=64)
    """Clips whose perceptual hashes (64 bits, three frames) differ in at most so many bits are duplicates."""
    dedup_cosine: float = Field(default=0.99, ge=0.98, le=1)
    """Clips whose embeddings have at least this cosine are duplicates as well, where imageModel gives embeddings. Below
    0.98 too few of them would be found in sets of millions."""
    long_side: int = Field(default=1080, ge=32, le=65_536)
    """Clips are scaled down to this longer side, pixels; never up."""
    in_place: bool = False
    """Write no file for a video that is one clip as it is (no cut, no border, constant rate of at most 30 frames per
    second): it is read where it lies, by its bytes there, and has to stay. longSide does not count for it."""
    captions: CaptionEndpoint | None = None
    """Have kept clips captioned that have no text of their own; their name is their caption if unset."""


class LearningRatePiece(ApiModel):
    """One piece of a piecewise constant learning rate."""

    value: float = Field(gt=0, le=1)
    """Learning rate."""
    until_step: int | None = Field(default=None, ge=1)
    """Last step with this rate; only the final piece may leave it out."""


class Optimizer(ApiModel):
    """AdamW with a piecewise constant learning rate after a linear warm-up."""

    learning_rate: list[LearningRatePiece] = Field(min_length=1, max_length=32)
    """Pieces in order of untilStep."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises linearly from 0."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(default=1e-15, gt=0)
    """Term added to the denominator; 1e-15 is what Open-Sora 2.0 uses (QK-norm makes it safe)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest global gradient norm."""


class Bucket(ApiModel):
    """One row of a bucket table: clips of one size class trained together."""

    resolution: Resolution
    """Area class: `256px` means about 256 x 256 pixels, whatever the aspect ratio."""
    frames: int = Field(ge=1, le=1025)
    """Longest clip of the class in frames: 1 + ck for a causal autoencoder, ck for others such as Video
    DC-AE, with its temporal compression c (4 for dc-ae and hunyuan-vae), or 1 for images."""
    min_frames: int | None = Field(default=None, ge=1)
    """Shortest clip of the class in frames, in steps of the temporal compression; equals frames if unset."""
    batch_size: int = Field(ge=1, le=1_000_000)
    """Samples of one micro-batch (what one data-parallel group takes at a time)."""
    recompute: Recompute | None = None
    """What blocks compute again in the backward pass of this row's steps; parallel.recompute if unset."""
    keep_probability: float = Field(default=1.0, gt=0, le=1)
    """Share of the fitting clips taken here; the others fall through to the next smaller resolution."""
    aspect_ratios: list[Annotated[str, Field(max_length=8)]] | None = Field(default=None, min_length=1, max_length=15)
    """Width:height names, such as `16:9`; the full table if unset."""
    micro_batches: int | None = Field(default=None, ge=1, le=1_000_000)
    """Micro-batches of one step of this row; parallel.microBatchesPerStep if unset. With batchSize it makes the samples
    of a step, in worlds of any size."""
    context_parallel: int | None = Field(default=None, ge=1, le=1024)
    """GPUs that share one clip of this row; parallel.contextParallel if unset."""


class ConditioningMix(ApiModel):
    """Relative weights with which a clip is trained under each kind of conditioning."""

    t2v: float = Field(default=1.0, ge=0)
    """Text only."""
    i2v_head: float = Field(default=0.0, ge=0)
    """First frame given."""
    i2v_tail: float = Field(default=0.0, ge=0)
    """Last frame given."""
    i2v_loop: float = Field(default=0.0, ge=0)
    """First and last frame given."""
    v2v_head: float = Field(default=0.0, ge=0)
    """32 leading frames given (causal autoencoder: 33); only clips that are longer."""
    v2v_tail: float = Field(default=0.0, ge=0)
    """32 trailing frames given (causal autoencoder: 33); only clips that are longer."""
    v2v_head_easy: float = Field(default=0.0, ge=0)
    """64 leading frames given (causal autoencoder: 65); only clips that are longer."""
    v2v_tail_easy: float = Field(default=0.0, ge=0)
    """64 trailing frames given (causal autoencoder: 65); only clips that are longer."""

    @property
    def kinds(self) -> list[ConditionKind]:
        """The kinds that have a weight."""
        return [kind for kind in get_args(ConditionKind) if getattr(self, kind) > 0]


class Validation(ApiModel):
    """Loss on clips that are never trained on, always at the same times and with the same noise."""

    every_steps: int = Field(default=500, ge=1, le=1_000_000_000)
    """Validate after every so many steps, and at the end. Must take less than failurePolicy.hangSeconds."""
    share: float = Field(default=0.01, gt=0, lt=1)
    """Share of the clips that is held out, chosen by their uid alone, so that all stages hold out the same ones."""
    max_samples: int = Field(default=64, ge=1, le=100_000)
    """Validate on so many held-out samples at most, taken evenly from the buckets."""
    times: int = Field(default=4, ge=1, le=100)
    """Evenly spaced times, before the shift, at which each sample is asked."""


class ParallelLayout(ApiModel):
    """How a step is spread over the GPUs."""

    _USUAL_STAGE: ClassVar[Literal[0, 1, 2, 3]] = 2

    micro_batches_per_step: int = Field(default=1, ge=1, le=1_000_000)
    """Micro-batches of one optimizer step (the logical data-parallel size). It fixes the global batch: worlds of any
    size share these micro-batches, so the sample order never depends on the number of nodes. A row of a bucket table
    may have its own number."""
    context_parallel: int = Field(default=1, ge=1, le=1024)
    """GPUs that share one sequence, neighbours in a node: they split its tokens, and within attention its heads
    (Ulysses). Where a node has too few GPUs, or the heads do not divide, parts of the sequence take turns (ring
    attention). Must divide GPUs per node, or be a multiple of them and divide the GPUs of every allowed number of
    nodes. A row of a bucket table may have its own."""
    engine: EngineName = "deepspeed"
    """Who shards weights, gradients and optimizer. `fsdp2` is torch's fully_shard: as little memory as zeroStage 2, one
    gather and one reduction per block, all of them beside the computation. Each continues the other's checkpoints. An
    autoencoder stage with `adversarial` takes `deepspeed`."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """What DeepSpeed shards: nothing (0, fp32 alone), optimizer and master weights (1), gradients as well (2), weights
    as well (3). On N GPUs in bf16 a parameter takes 6 + 12/N, 2 + 16/N or 26/N bytes in stage 1, 2 or 3. If unset 2, in
    an autoencoder stage 1; with `adversarial` 0 or 1. Not with engine `fsdp2`, which always shards as stage 2 does."""
    offload: Offload = "none"
    """`optimizer`: keep master weights and moments in the host's memory and update them there; 12/N bytes less per
    parameter on the GPU for a slower step. Not with zeroStage 0."""
    recompute: Recompute = "none"
    """What blocks compute again in the backward pass instead of keeping it, unless a row of the bucket table says
    otherwise. `selective` keeps what is dear (matrix products, attention) and costs almost no time; `full` keeps only
    the inputs of the blocks, at about a third more work."""
    checkpoint_double_blocks: int | None = Field(default=None, ge=0)
    """`full` is for the first so many two-stream blocks, the others keep everything; for all of them if unset."""
    checkpoint_single_blocks: int | None = Field(default=None, ge=0)
    """`full` is for the first so many one-stream blocks, the others keep everything; for all of them if unset."""

    @property
    def deepspeed_stage(self) -> Literal[0, 1, 2, 3]:
        """The ZeRO stage that DeepSpeed runs in."""
        return self._USUAL_STAGE if self.zero_stage is None else self.zero_stage

    def recompute_of(self, row: Bucket) -> Recompute:
        """What blocks compute again in steps of a row of the bucket table."""
        return self.recompute if row.recompute is None else row.recompute

    def micro_batches_of(self, row: Bucket) -> int:
        """Micro-batches of one step of a row."""
        return row.micro_batches or self.micro_batches_per_step

    def degree_of(self, row: Bucket) -> int:
        """GPUs that share one clip of a row."""
        return row.context_parallel or self.context_parallel


def ulysses_degree(degree: int, gpus_per_node: int, heads: int) -> int:
    """How many of the `degree` GPUs that share a sequence split heads: as many as their node and the heads allow.

    They exchange everything with one another, so they are of one node. `degree` over the result is the number of parts
    of the sequence that take turns in ring attention; 1 unless the degree exceeds a node or does not divide the heads.
    """
    return math.gcd(degree, gpus_per_node, heads)


class AutoencoderLayout(ParallelLayout):
    """How a step of autoencoder training is spread over the GPUs."""

    _USUAL_STAGE: ClassVar[Literal[0, 1, 2, 3]] = 1


class WeightsFrom(ApiModel):
    """Where the initial weights of a stage come from; at most one field."""

    stage: StageName | None = None
    """An earlier stage of the run with the same task."""
    uri: Location | None = None
    """A safetensors file or a checkpoint."""
    adapt: Literal["image-autoencoder", "new-latents"] | None = None
    """How weights of another model are taken over; unset for weights of this very model. `image-autoencoder`: a 2-D
    DC-AE for an autoencoder stage, its kernels becoming the middle frame of 3-D ones. `new-latents`: a transformer of
    another autoencoder for a train stage, with new input and output layers. Needs `uri`."""


class LoraAdapter(ApiModel):
    """Low-rank additions to some linear layers (arXiv 2106.09685); everything else stays as it is."""

    rank: int = Field(ge=1, le=4096)
    """Width of the additions."""
    alpha: float | None = Field(default=None, gt=0)
    """The additions are multiplied by alpha / rank; equals rank if unset."""
    targets: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(
        default=["q_proj", "k_proj", "v_proj", "proj", "v_mlp", "linear2", "img_mlp.0", "img_mlp.2"],
        min_length=1,
        max_length=64,
    )
    """Ends of the names of the layers that are adapted."""
    quantize_base: BaseQuantization = "none"
    """Hold the frozen weights of the blocks' linear layers in 8 bits, with a scale for each row, and widen them where
    they are multiplied. That is nearly half of their memory; the result is merged into the weights as they were. int8
    rounds less where a row has no outliers; fp8 needs GPUs that have it."""


class Prompt(ApiModel):
    """One video to draw."""

    text: str = Field(min_length=1)
    """The prompt."""
    negative: str = ""
    """What text guidance leads away from."""
    image: Location | None = None
    """URI of a reference picture; text only if unset."""
    last_image: Location | None = None
    """URI of the last frame of `i2v_loop`; `image` itself if unset."""
    video: Location | None = None
    """URI of the reference video of the v2v kinds."""
    condition: ConditionKind = "t2v"
    """How the reference is used; `i2v_head` makes it the first frame."""
    seed: int = Field(default=sampling.SEED, ge=0)
    """Seed of the noise."""


class TrainingSamples(ApiModel):
    """Videos drawn while a stage trains: always of the same prompts with the same noise, so that steps compare."""

    every_steps: int = Field(default=500, ge=1, le=1_000_000_000)
    """Draw before the first step, after every so many, and at the end. Training stands still meanwhile."""
    prompts: list[Prompt] = Field(min_length=1, max_length=16)
    """What to draw."""
    resolution: Resolution
    """Area class of the videos."""
    frames: int = Field(ge=1, le=100_000)
    """Frames of a video."""
    aspect_ratio: str = Field(default="1:1", max_length=8)
    """Width:height name."""
    sampling_steps: int = Field(default=sampling.PREVIEW_STEPS, ge=1, le=1000)
    """Euler steps."""
    text_guidance: float | None = Field(default=None, ge=0)
    """As of a sample stage."""
    image_guidance: float = Field(default=sampling.IMAGE_GUIDANCE, ge=0)
    """Scale of image guidance."""
    fps: int = Field(default=sampling.FPS, ge=1, le=120)
    """Frame rate of the files and of the prompt suffix."""
    motion_score: int = Field(default=sampling.MOTION_SCORE, ge=0)
    """Motion score of the prompt suffix."""


class TrainTask(ApiModel):
    """Flow-matching training of the transformer on encoded clips."""

    steps: int = Field(ge=1, le=1_000_000_000)
    """Optimizer steps."""
    buckets: list[Bucket] = Field(min_length=1, max_length=64)
    """The bucket table."""
    optimizer: Optimizer
    """Optimizer and learning rate."""
    conditioning: ConditioningMix = ConditioningMix()
    """Mix of text-only and image/video conditioned samples."""
    text_dropout: float = Field(default=0.31622777, ge=0, lt=1)
    """Probability of dropping each text feature on its own; the default gives 10 % without any text."""
    attend_padding: bool = True
    """Pad every caption to textEncoder.maxTokens and attend to the padding, as the released weights were trained. Off,
    a caption is padded to the next of 96, 160, 256 and 512 tokens, and batches hold captions of one such length. Sets
    that are encoded already serve either way."""
    text: TextForm = "stored"
    """Where text features come from. `stored` reads them from the encoded set. `online` has captions alone in the set,
    a thousandth of the size, and the text encoder on every GPU, which encodes the captions of each micro-batch before
    its step. The numbers are the same; a set serves the ways that the train stages behind its encode stage take."""
    motion_score: bool = True
    """Append the clip's motion score to its caption."""
    fps_in_prompt: bool = True
    """Append the clip's frame rate to its caption."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Data type of weights and activations; master weights and optimizer states are always fp32."""
    fp8: bool = False
    """Multiply the blocks' large linear layers in FP8, rows scaled one by one; their weights' gradients stay bf16, and
    so does all else. Needs precision bf16 and GPUs with FP8 (H100, H200 and newer); the CPU computes the same."""
    parallel: ParallelLayout = ParallelLayout()
    """Parallel layout."""
    attention: AttentionKernel = "auto"
    """What attention runs on, proven by a call at every start. `auto` takes cuDNN on Hopper and later GPUs unless
    another kernel that is installed is measured to be faster; `flash2`, `flash3` and `flash4` need their packages. Ring
    attention (see contextParallel) takes `auto`, `flash`, `flash3` or `flash4`."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the blocks with torch.compile: on GPUs (auto), always or never. Takes minutes at a run's first start; the
    result is kept on the pod's cache volume."""
    lora: LoraAdapter | None = None
    """Train an adapter instead of the weights. The result is the model with the adapter merged in, and beside it
    `weights/adapter/` has the adapter alone in PEFT's layout."""
    skip_given_frames: bool = False
    """Leave a given first or last frame out of the loss; off, as in the published recipe, everything counts."""
    validation: Validation | None = None
    """Hold clips out and measure the loss on them; no validation if unset."""
    samples: TrainingSamples | None = None
    """Draw videos of fixed prompts meanwhile, with the weights as they are; none if unset."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the moving average of the weights per optimizer step, (1 + step) / (10 + step) while that is less; none
    is kept if unset."""
    init_from: WeightsFrom | None = None
    """Initial weights: the previous train stage by default, else spec.model.weights, else random."""
    subset: StageName | None = None
    """One of dataset.subsets; all clips if unset."""
    select: list[ScoreBounds] = Field(default_factory=list, max_length=16)
    """Clips of it to train on; all if empty."""
    sample_cache_gibibytes: int | None = Field(default=None, ge=1, le=1_048_576)
    """Keep samples that were read on the pod's cache volume, up to so many GiB, for later epochs and restarts; none is
    kept if unset. Worth it where the object store is slow or reading costs money, and several epochs are trained."""
    source_weights: list[SourceWeights] = Field(default_factory=list, max_length=32)
    """Weights of dataset.sources in this stage, in order of untilStep; their own if empty."""
    appended_every_steps: int | None = Field(default=None, ge=1)
    """Before step 1 and after each multiple of so many steps, take in what `videotrain-trainer append` has appended to
    the encoded sets that the stage trains on; nothing is taken in if unset."""

    @property
    def prompt_style(self) -> PromptStyle:
        """What follows a caption, by fpsInPrompt and motionScore."""
        if self.fps_in_prompt:
            return "fps-motion" if self.motion_score else "fps"
        return "motion" if self.motion_score else "plain"


class PerceptualLoss(ApiModel):
    """LPIPS, a distance in the features of VGG16, added to the mean absolute error."""

    weights: Location = Field(min_length=1)
    """URI of a folder with the published weights as .safetensors, .pth or .pt files: VGG16 and the linear layers of
    LPIPS 0.1, apart or in one file. They are not part of any image, so mount or upload them."""
    weight: float = Field(default=0.5, gt=0, le=1000)
    """Factor on the distance; 0.5 is published."""


class AdversarialPhase(ApiModel):
    """A 3-D PatchGAN discriminator against the autoencoder."""

    start_step: int = Field(default=0, ge=0)
    """Steps without it; then both models train. The published recipe begins after 250,000, in a run of its own."""
    weight: float = Field(default=0.05, gt=0, le=1000)
    """Share of the adversarial loss's pull at the last layer, the reconstruction's being 1; 0.05 is published."""
    loss: Literal["hinge", "vanilla"] = "hinge"
    """Hinge (published), or logistic."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Constant learning rate of the discriminator; 1e-4 is published. All else is as `optimizer` says."""
    filters: int = Field(default=64, ge=1, le=1024)
    """Channels of the discriminator's first layer; they double up to eightfold."""
    layers: int = Field(default=5, ge=1, le=8)
    """Layers that halve rows and columns, the first two also the time; a clip must keep 2 x 2 patches."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of the discriminator's activations that are dropped; without it the discriminator wins too early."""


class AutoencoderTask(ApiModel):
    """Training of the video autoencoder on pixels."""

    steps: int = Field(ge=1, le=1_000_000_000)
    """Optimizer steps."""
    bucket: Bucket
    """Size of the training clips; cropped from the curated clips."""
    optimizer: Optimizer
    """Optimizer and learning rate."""
    image_ratio: float = Field(default=0.2, ge=0, lt=1)
    """Share of micro-batches that keep only the first frame."""
    head_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the other micro-batches whose first latent frame is that of the first frame by itself, as a video that
    begins with a given picture has it. An autoencoder that is not causal learns so to decode one; none by default, as
    in the published recipe."""
    perceptual: PerceptualLoss | None = None
    """Perceptual loss; mean absolute error alone if unset, which blurs."""
    adversarial: AdversarialPhase | None = None
    """Adversarial phase, which sharpens; none if unset."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Data type of weights and activations."""
    parallel: AutoencoderLayout = AutoencoderLayout()
    """Parallel layout; context parallelism is not supported here."""
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving average of the weights per optimizer step, (1 + step) / (10 + step) while that is less; 0
    gives the last weights themselves."""
    init_from: WeightsFrom | None = None
    """Initial weights: spec.autoencoder.weights by default, else random."""


class EncodeTask(ApiModel):
    """Clips and captions to latent and text features, in tar shards with a Parquet manifest.

    The sizes are those of all later train stages, so nothing is declared twice.
    """

    engine: UnitEngine = "local"
    """Who encodes: the processes of the pods, or Ray Data in a cluster that the pods form, with an actor for each GPU.
    Either goes on where the other was."""
    shard_bytes: int = Field(default=512 * 1024 * 1024, ge=65536, le=2**40)
    """Target size of a shard, bytes."""


class SampleTask(ApiModel):
    """Videos drawn from the trained model, written as mp4."""

    prompts: list[Prompt] = Field(default_factory=list, max_length=256)
    """What to draw."""
    from_dataset: int = Field(default=0, ge=0, le=100_000)
    """Draw so many further videos from captions of the training clips, with the clip's first frame as reference if
    the model was trained on i2v_head; the report shows them beside the clips."""
    resolution: Resolution
    """Area class of the videos."""
    frames: int = Field(ge=1, le=100_000)
    """Frames of a video."""
    aspect_ratio: str = Field(default="1:1", max_length=8)
    """Width:height name."""
    sampling_steps: int = Field(default=sampling.STEPS, ge=1, le=100_000)
    """Euler steps."""
    text_guidance: float | None = Field(default=None, ge=0)
    """Scale of text guidance, or the value of a distilled model's guidance input. If unset 7.5, and 4 for a distilled
    model."""
    image_guidance: float = Field(default=sampling.IMAGE_GUIDANCE, ge=0)
    """Scale of image guidance."""
    fps: int = Field(default=sampling.FPS, ge=1, le=120)
    """Frame rate of the files and of the prompt suffix."""
    motion_score: int = Field(default=sampling.MOTION_SCORE, ge=0)
    """Motion score of the prompt suffix."""
    oscillate_text: bool = True
    """Run every second step from the tenth on with a text scale of 1."""
    oscillate_image: bool = True
    """The same for the image scale."""
    dynamic_image_guidance: bool = True
    """Let the image scale rise over the frames and fall over the steps where a picture is given."""
    candidates: int = Field(default=1, ge=1, le=64)
    """Draw so many candidates of each video, with seeds that follow each other, and keep the best."""
    scorer: Scorer | None = None
    """What the best candidate is chosen by; needed if candidates is above 1."""
    offload: bool = False
    """Keep models that are not in use in host memory; slower, for GPUs that do not hold all of them."""


class Stage(ApiModel):
    """One stage of a run. Exactly the member named by `task` is set."""

    name: StageName
    """Unique name within the run; part of object names and storage paths."""
    task: Task
    """What the stage does."""
    nodes: NodeBounds | None = None
    """Node bounds of this stage; spec.nodes if unset."""
    pool: Pool | None = None
    """Nodes of this stage and their price; spec.pool if unset. Nothing is taken over from there. Between stages of
    different pools the old pods go before the new ones are made; stages with equal pools share their pods."""
    curate: CurateTask | None = None
    """Set when task is `curate`."""
    autoencoder: AutoencoderTask | None = None
    """Set when task is `autoencoder`."""
    encode: EncodeTask | None = None
    """Set when task is `encode`."""
    train: TrainTask | None = None
    """Set when task is `train`."""
    sample: SampleTask | None = None
    """Set when task is `sample`."""
    evaluate: EvaluateTask | None = None
    """Set when task is `evaluate`."""

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the stage, if it is one that trains."""
        task = self.train or self.autoencoder
        return task.steps if task else None
