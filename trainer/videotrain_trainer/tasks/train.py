"""The train stage: flow matching of the transformer on encoded clips.

Shapes: B batch, C latent channels, T latent frames, H rows, W columns, L text tokens, D text width, P pooled width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from videotrain_api.cost.flops import mmdit_shape, recomputed_blocks
from videotrain_api.cost.text_encoding import TEXTS_BESIDE
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import LoraAdapter, Recompute, TrainTask
from videotrain_trainer.checksums import read_again
from videotrain_trainer.data.appended import GrowingData, appended_entries, growing_sets
from videotrain_trainer.data.buckets import row_name
from videotrain_trainer.data.loader import held_out_batches
from videotrain_trainer.data.sample_cache import SampleCache
from videotrain_trainer.data.sample_order import AppendedSet, OrderState
from videotrain_trainer.data.sets import LatentSet, null_text_uri, open_latents
from videotrain_trainer.data.transfer import map_tensors
from videotrain_trainer.diffusion.flow_batches import FlowLoader, FlowMicroBatch
from videotrain_trainer.diffusion.flow_matching import flow_inputs, model_facts, validation_draws
from videotrain_trainer.errors import ConfigError, DataError, ObjectMissing, TrainerError
from videotrain_trainer.networks.adaptation import TRANSFORMER_LATENT_LAYERS
from videotrain_trainer.networks.attention_kernels import attention_case, attention_kernel
from videotrain_trainer.networks.build import build_transformer
from videotrain_trainer.networks.fp8 import check_task, use_fp8
from videotrain_trainer.networks.initial import initial_fragments
from videotrain_trainer.networks.lora.base import adapt
from videotrain_trainer.networks.lora.layers import adapter_fragments
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import Fragments, load_frozen, open_weights, starting_fragments
from videotrain_trainer.node_cache import NodeCache
from videotrain_trainer.parallel.activation import transformer_blocks
from videotrain_trainer.parallel.check_models import CheckCase, CheckModel, small_transformer
from videotrain_trainer.parallel.context import ContextGroup, ContextGroups
from videotrain_trainer.parallel.engine import compute_dtype
from videotrain_trainer.parallel.peers import WorldPeers, first_choice
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.train_compile import compile_ahead, programs
from videotrain_trainer.tasks.train_samples import StepSamples
from videotrain_trainer.text.byte_encoder import TextFeatures
from videotrain_trainer.text.encoders import build_text_encoder, open_text_encoder
from videotrain_trainer.text.stored import OnlineText, null_features
from videotrain_trainer.training.loop import train
from videotrain_trainer.training.setup import initial_weights
from videotrain_trainer.training.shared_loss import micro_batch_loss
from videotrain_trainer.training.step import Model
from videotrain_trainer.training.step_flops import MicroBatchWork, transformer_work
from videotrain_trainer.training.step_samples import DrawnSamples
from videotrain_trainer.training.validation_loss import ValidationLosses, measure, spread_over_groups, times_of
from videotrain_trainer.worker.stage_context import Outcome, StageContext, World

log = logging.getLogger(__name__)


def run(context: StageContext) -> Outcome:
    """Train the transformer.

    Raises:
        ConfigError: model, autoencoder and task do not fit together.
        DataError: the encoded set is missing or damaged.
    """
    task = _task(context)
    dtype = compute_dtype(task.precision)
    case = attention_case(context.config.model, context.world.device, dtype)
    with attention_kernel(task.attention, case, first_choice) as kernel:
        return train(context, partial(FlowObjective, attention=kernel), task.steps)


class FlowObjective:
    """Flow matching on encoded clips.

    Args:
        context: of the stage.
        store: object store.
        attention: kernel that attention runs on.
    """

    def __init__(self, context: StageContext, store: ObjectStore, attention: str | None = None) -> None:
        config = context.config
        self.task, self.attention = _task(context), attention
        with torch.device("meta"):
            self.module: MMDiT = build_transformer(config.model, config.autoencoder, config.text_encoder)
        self._config, self._store, self._device = config, store, context.world.device
        self._cache, self._generation = NodeCache(context.cache, store), context.generation
        check_task(self.task, self._device)
        self.base: Fragments | None = None
        if self.task.lora is not None:
            self._adapt(self.task.lora)
        if self.task.fp8:
            use_fp8(self.module)
        on_gpu = context.world.device.type == "cuda"
        self._compiled = self.task.compile == "on" or (self.task.compile == "auto" and on_gpu)
        self._blocks = transformer_blocks(self.module, self.task.parallel, self._compiled)
        self._facts = model_facts(config.model, config.autoencoder)
        self.data: LatentSet = open_latents(store, config, self._cache)
        self._growing = GrowingData(store, config, self._cache)
        self._policies = self._policies_by_bucket()
        self._shape = mmdit_shape(config.model, config.autoencoder, config.text_encoder)
        self._recomputed = recomputed_blocks(self._shape, self.task.parallel)
        self._captions = self._online_text(context)
        features = self._null_features()
        self._null_text = map_tensors(features, lambda tensor: tensor.to(self._device))
        self._split_samples(context.world, config.gpus_per_node)
        mine = [self.data.held_out[number] for number in self._numbers]
        self._held_out = held_out_batches(store, self.data, mine, self._captions)
        self._samples: StepSamples | None = None
        if self.task.samples is not None:
            encoder = self._captions.encoder if self._captions else None
            self._samples = StepSamples(context, store, self.task.samples, self.module.config, encoder)

    def _online_text(self, context: StageContext) -> OnlineText | None:
        """What encodes captions beside the steps; it stays on the device, whatever the engine takes there."""
        if self.task.text == "stored":
            return None
        spec, at_once = self._config.text_encoder, TEXTS_BESIDE if self._device.type == "cuda" else 1
        return OnlineText(open_text_encoder(spec, self._store, context.cache, self._device, at_once), self._device)

    def _null_features(self) -> TextFeatures:
        """Features of the empty caption: by the encoder that encodes the other ones, if there is one here."""
        if self._captions is not None:
            return null_features(self._captions.encoder)
        return null_text(self._store, self.data, self._config.text_encoder)

    def _split_samples(self, world: World, gpus_per_node: int) -> None:
        """Which ranks share a sample, of every bucket and of every held-out sample. Collective."""
        layout, heads = self.task.parallel, self.module.config.num_heads
        degrees = {row_name(row): layout.degree_of(row) for row in self.task.buckets}
        groups = self._context_groups = ContextGroups(world.rank, degrees.values(), gpus_per_node, heads)
        self._groups = self._groups_by_bucket()
        held_out = [degrees[sample.row] for sample in self.data.held_out]
        self._numbers = spread_over_groups(held_out, world.rank, world.size)
        self._held_out_groups = [groups.of(held_out[number]) for number in self._numbers]

    def _groups_by_bucket(self) -> dict[str, ContextGroup | None]:
        buckets = zip(self.data.plan.buckets, self.data.degrees, strict=True)
        return {bucket.name: self._context_groups.of(degree) for bucket, degree in buckets}

    def _policies_by_bucket(self) -> dict[str, Recompute]:
        """What blocks recompute in the steps of each bucket; where two rows share one, the policy that keeps less."""
        layout, saving = self.task.parallel, get_args(Recompute)
        policies = {row_name(row): layout.recompute_of(row) for row in self.task.buckets}
        return {
            bucket.name: max((policies[name] for group in groups for name in group.rows), key=saving.index)
            for bucket, groups in zip(self.data.plan.buckets, self.data.groups, strict=True)
        }

    def _adapt(self, spec: LoraAdapter) -> None:
        """Frozen weights are in no checkpoint, so every start reads them."""
        source = self._config.paths.initial_weights
        if source is None:
            raise ConfigError("train.lora: an adapter needs weights to start from; set spec.model.weights or initFrom")
        weights = initial_weights(self._store, source, self._cache)
        found = starting_fragments(self.module, weights, initial_fragments(self.module, self._config.seed))
        self.base = found
        adapt(self.module, spec)
        dtype = compute_dtype(self.task.precision)
        load_frozen(self.module, found, self._device, dtype)

    def first_weights(self) -> Fragments:
        """Random weights, or those that the stage starts from; of an adapter its own first values."""
        own, source = initial_fragments(self.module, self._config.seed), self._config.paths.initial_weights
        if self.task.lora is not None:
            return adapter_fragments(self.module, self._config.seed)
        if source is None:
            return own
        adapt = self.task.init_from is not None and self.task.init_from.adapt == "new-latents"
        fresh = TRANSFORMER_LATENT_LAYERS if adapt else ()
        return starting_fragments(self.module, initial_weights(self._store, source), own, fresh)

    def compile_ahead(self) -> None:
        """Compile what the steps will run, for every policy of the bucket table."""
        if not self._compiled:
            return
        wanted = programs(self.data, self._policies, self._facts.patch)
        dtype = compute_dtype(self.task.precision)
        validates = self.task.validation is not None
        text_tokens = self.data.context_length
        compile_ahead(self._small_model, wanted, text_tokens, self._device, dtype, validates, self._context_groups)

    def _small_model(self) -> MMDiT:
        config = self._config
        one_each = {"double_blocks": 1, "single_blocks": 1}
        model = build_transformer(config.model.model_copy(update=one_each), config.autoencoder, config.text_encoder)
        if self.task.lora is not None:
            adapt(model, self.task.lora)
        if self.task.fp8:
            use_fp8(model)
        return model

    def export_metadata(self, _weights: Mapping[str, Tensor], /) -> dict[str, str]:
        """Nothing: whoever draws from the transformer knows the rest from the configuration."""
        return {}

    def check_model(self, world: World, /) -> CheckModel:
        """A small transformer, run in every way in which a row of the bucket table runs."""
        layout = self.task.parallel
        ways = {(layout.degree_of(row), layout.recompute_of(row)): None for row in self.task.buckets}
        cases = [CheckCase(policy, self._context_groups.of(degree)) for degree, policy in ways]
        return small_transformer(self.module.config, cases, world.size, world.device)

    def loader(self, state: OrderState, micro_batches: Sequence[Sequence[int]]) -> FlowLoader:
        """Batches of this rank's micro-batches."""
        budget, samples = self.task.sample_cache_gibibytes, None
        if budget is not None:
            samples = SampleCache(self._cache.volume, budget << 30, self._config.paths.output, str(self._generation))
        task, facts, seed = self.task, self._facts, self._config.seed
        return FlowLoader(
            self._store, self.data, state, micro_batches, self._device, task, facts, seed, samples, self._captions
        )

    @property
    def appended_every(self) -> int | None:
        """Steps between looks for sets that were appended; None for none."""
        return self.task.appended_every_steps

    def decide(
        self, step: int, known: Sequence[AppendedSet], refused: Callable[[TrainerError], None]
    ) -> list[AppendedSet]:
        """What is taken in behind a step; see GrowingData."""
        return self._growing.decided(step, known, refused)

    def take_in(self, appended: Sequence[AppendedSet]) -> None:
        """Have the samples of these sets, too."""
        self.data = self._growing.grown(self.data, appended)
        self._policies, self._groups = self._policies_by_bucket(), self._groups_by_bucket()

    def passed_over(self) -> dict[str, int]:
        """How many sets were appended to those of a stage that does not look for them, by URI."""
        if self.appended_every is not None:
            return {}
        try:
            found = {uri: len(appended_entries(self._store, uri)) for uri in growing_sets(self._config)}
        except TrainerError as error:  # the stage needs to know nothing of it
            log.warning("whether anything was appended to the stage's sets is not known: %s", error)
            return {}
        return {uri: count for uri, count in found.items() if count}

    def loss(self, model: Model, batch: FlowMicroBatch) -> tuple[Tensor, MicroBatchWork]:
        """Mean squared error of the velocity; see `micro_batch_loss` for ranks that share the batch."""
        bucket = batch.keys[0].bucket
        policy = self._policies[bucket]
        self._blocks.recompute(policy)
        inputs = flow_inputs(batch, batch.draws, self._facts, self._null_text)
        loss = micro_batch_loss(model, inputs, self._groups[bucket], self.task.skip_given_frames)
        work = transformer_work(
            self._shape,
            batch.latent_BCTHW.shape,
            self._facts.patch,
            inputs.txt_BLD.shape[1],
            batch.text_tokens,
            self._recomputed if policy == "full" else (0, 0),
        )
        return loss, work

    @property
    def validate_every(self) -> int | None:
        """Steps between validations; None for none."""
        return self.task.validation.every_steps if self.task.validation else None

    def validate(self, model: Callable[..., Any], peers: WorldPeers) -> ValidationLosses:
        """Mean squared error on the held-out samples, given frames included. Collective."""
        if self.task.validation is None:
            raise ConfigError(f"stage {self._config.stage.name!r}: train.validation is not set")
        self._blocks.recompute("none")  # there is no backward pass, for which `selective` would keep values

        def loss(place: int, time: float) -> Tensor:
            held_out, group = self._held_out[place], self._held_out_groups[place]
            shape_CTHW = held_out.latent_BCTHW.shape[1:]
            draws = validation_draws(held_out.keys, shape_CTHW, self.task, self._facts, time)
            batch = map_tensors(FlowMicroBatch(**vars(held_out), draws=draws), lambda tensor: tensor.to(self._device))
            found = micro_batch_loss(model, flow_inputs(batch, batch.draws, self._facts, self._null_text), group)
            return group.sum(found) / group.degree if group else found

        buckets = [sample.bucket.info.bucket for sample in self.data.held_out]
        return measure(loss, buckets, times_of(self.task.validation.times), self._numbers, peers)

    @property
    def draw_every(self) -> int | None:
        """Steps between drawings; None for none."""
        return self.task.samples.every_steps if self.task.samples else None

    def draw_samples(self, model: Callable[..., Any], peers: WorldPeers, step: int) -> DrawnSamples | None:
        """See DrawsSamples. Collective."""
        if self._samples is None:
            raise ConfigError(f"stage {self._config.stage.name!r}: train.samples is not set")
        self._blocks.recompute("none")  # there is no backward pass
        return self._samples.draw(model, peers, step)


def null_text(store: ObjectStore, data: LatentSet, spec: TextEncoderSpec) -> TextFeatures:
    """Features of the empty caption: those stored with the set; the encoder over bytes can also make them again.

    Raises:
        DataError: the set has none, or they are not readable.
    """
    uri = null_text_uri(data.uri)
    try:
        read_again(store, lambda source: source.stat(uri), (ObjectMissing,))
        found = open_weights(uri, store=store)
        context_LD, pooled_P = found.read("context").float(), found.read("pooled").float()
    except ObjectMissing as error:
        if spec.kind == "bytes":
            return build_text_encoder(spec).encode([""])
        raise DataError(f"{uri}: missing; text dropout needs the empty caption's features; encode again") from error
    except (ConfigError, KeyError) as error:
        raise DataError(f"{uri}: not the features of a caption: {error!r}; encode again") from error
    return TextFeatures(context_BLD=context_LD[None], pooled_BP=pooled_P[None], lengths=[len(context_LD)])


def _task(context: StageContext) -> TrainTask:
    task = context.config.stage.train
    if task is None:
        raise ConfigError(f"stage {context.config.stage.name!r}: train must be set")
    return task
