"""What a worker holds and computes: its layers, one step at a time, and the update once a step is decided."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from runtime.control.messages import Vote
from runtime.control.training.digests import TIED_TABLE
from runtime.control.wire import AdamW
from runtime.engine.backup import BackupSender
from runtime.engine.data import Corpus
from runtime.engine.generation import Generation, compute_device
from runtime.engine.gradients import bind_gradients, flat_values, lacking, new_gradient
from runtime.engine.models import gpt
from runtime.engine.numerics import Numerics, dropout_seed, optimiser_of
from runtime.engine.schedule import PipelineStep
from runtime.engine.shadow import exchange_gradients
from runtime.engine.state import LayerState
from runtime.engine.tie import sum_tied
from runtime.planning.ledger import SampleOrder
from runtime.planning.model import ModelSpec


class Trainer:
    """The layers of one worker, all of them at the same `step` (the number of steps committed)."""

    def __init__(
        self, model: ModelSpec, seed: int, corpus: Corpus, exact: bool, point: Callable[[str], None]
    ) -> None:
        assert model.gpt is not None, "only GPT models can be trained"
        self._shape = model.gpt
        self._training = model.training
        self._params = [layer.params for layer in model.layers]
        self._seed, self._exact = seed, exact
        self._corpus = corpus
        self.samples = corpus.trained_samples(self._training.held_out)
        self._order = SampleOrder(self.samples, self._training.mini_batch, seed)
        self._point = point
        self._micro_batches = self._training.micro_batches
        self._optimiser = optimiser_of(self._training)
        self._device = compute_device()
        self._numerics = Numerics.of(self._training, self._device)
        self.step = 0
        self.layers: dict[int, LayerState] = {}

    def warm_up(self) -> None:
        """Run one micro-batch through a throwaway embedding, block and head.

        The first use of each kernel costs tens of milliseconds; spent here, it holds up nobody.
        """
        head = self._shape.layers + 1
        layers = [self.new_layer(index, from_seed=True) for index in (0, 1, head)]
        bind_gradients(layers, self._exact)
        out, targets = (t.to(self._device) for t in self._corpus.batch([0] * self._training.micro_batch))
        for layer in layers:
            out = self._numerics.forward(layer.module, out, seed=0)
        gpt.loss_of(out, targets).backward()  # type: ignore[no-untyped-call]
        for layer in layers:
            layer.square_norm()
            layer.update(0, layer.scaled(1.0), self._optimiser)

    def new_layer(self, index: int, from_seed: bool) -> LayerState:
        """A layer of its own memory: initialised from the seed, or zero until its state arrives."""
        module, tied = gpt.build_layer(self._shape, index), gpt.tied_parameter(self._shape, index)
        state = LayerState(index, module, self._exact, self._device, tied)
        if from_seed:
            gpt.initialise_layer(state.module, self._shape, index, self._seed)
        return state

    def parameters(self) -> list[list[Any]]:
        """[layer, name, shape] of every tensor of the model, in the order of their place in the state."""
        return [
            [index, name, list(parameter.shape)]
            for index in range(self._shape.layers + 2)
            for name, parameter in gpt.build_layer(self._shape, index).named_parameters()
        ]

    def make_room(self, generation: Generation, running: Generation | None) -> list[torch.Tensor]:
        """Memory for the gradients of a generation to come; that of the `running` one will serve it too.

        Empty where there is no room for both at once: then it is found at the switch.
        """
        stages = generation.own_stages.values()
        values = [flat_values(self._params[index] for index in layers) for layers in stages]
        memory = [] if running is None or running.waiter.abandoned else [*running.gradients.values()]
        try:
            return [new_gradient(n, self._exact, self._device) for n in lacking(memory, values)]
        except RuntimeError:
            return []

    def enter(
        self,
        generation: Generation,
        step: int,
        arrived: Mapping[int, LayerState],
        memory: Sequence[torch.Tensor] = (),
    ) -> None:
        """Take the generation's position at `step`; `arrived` layers are installed, all of them at once.

        `memory` of gradients that nobody uses any more may be used again.
        """
        if step != self.step:
            self.layers.clear()  # a rollback: versions never mix
            self.step = step
        self.layers.update(arrived)
        missing = [index for index in generation.held if index not in self.layers]
        if missing:
            raise RuntimeError(f"layers {missing} of step {step} are not here and were not sent")
        room = [*generation.take_room(), *memory]
        for stage, held in generation.own_stages.items():
            layers = [self.layers[index] for index in held]
            generation.gradients[stage] = bind_gradients(layers, self._exact, room)

    def compute(self, generation: Generation) -> Vote:
        """Forward, backward and reduction of this step; touches gradients only.

        Raises:
            AbandonedError: the generation was aborted.
            RuntimeError: the network failed.
        """
        training = self._training
        works = generation.works[generation.stage]
        for stage in works:
            generation.gradients[stage].zero_()
        mine = [self.layers[index] for index in generation.layers]
        step = PipelineStep(
            generation.groups(),
            generation.waiter,
            [self._forward_of(layer) for layer in mine],
            generation.stage,
            generation.stages,
            (training.micro_batch, self._shape.seq, self._shape.d_model),
            gpt.loss_of,
            self._point,
            self._device,
            [self._forward_of(self.layers[index]) for index in generation.shadow_layers],
        )
        generation.keep_alive = step
        if training.evaluates(self.step):
            held_out = generation.micro_batches(training.held_out // training.micro_batch)
            ids: Sequence[int] = range(self.samples, self._corpus.samples)
            step.evaluate(held_out, self._data(generation, ids, held_out))
        ids, micro_batches = self._order.samples(self.step), generation.micro_batches(self._micro_batches)
        step.run(micro_batches, self._data(generation, ids, micro_batches), 1.0 / self._micro_batches)
        sums = [generation.groups().reduce(generation.gradients[stage], k) for k, stage in enumerate(works)]
        self._point("reduce")
        for work in sums:
            if work is not None:
                generation.waiter.wait(work)
        if self._shape.tied_embeddings:
            sum_tied(generation, self.layers)
        exchange_gradients(generation)
        norms: list[list[Any]] = []
        if generation.pipeline == 0:
            norms = [[layer.index, layer.square_norm()] for layer in mine]
        losses, held_out_losses = ([list(pair) for pair in at] for at in (step.losses, step.held_out_losses))
        return Vote(generation.number, self.step, losses, norms, held_out_losses=held_out_losses)

    def _forward_of(self, layer: LayerState) -> Callable[[torch.Tensor, int | None], torch.Tensor]:
        def forward(x: torch.Tensor, micro_batch: int | None) -> torch.Tensor:
            seed = None
            if micro_batch is not None and self._training.dropout:
                seed = dropout_seed(self._seed, self.step, micro_batch, layer.index)
            return self._numerics.forward(layer.module, x, seed)

        return forward

    def apply(
        self,
        generation: Generation,
        scale: float,
        followed: Collection[int] = (),
        keep: Callable[[int, int, torch.Tensor], None] = lambda layer, step, gradient: None,
        backup: BackupSender | None = None,
    ) -> None:
        """The step is committed: update the layers. Local; after it, layers of other stages are dropped.

        `keep` gets the index, the step and the gradient of the layers that are `followed`, before all else:
        their followers wait for it. `backup` gets those of all layers.
        """
        optimiser = self._optimiser_at(self.step)
        kept: dict[int, torch.Tensor] = {}
        for index in generation.held:
            if index in followed:
                kept[index] = self.layers[index].scaled(scale)
                keep(index, self.step, kept[index])
        for count, index in enumerate(generation.held):
            half_way = (lambda: self._point("optimiser")) if count == 0 else None
            layer = self.layers[index]
            gradient = kept.pop(index) if index in kept else layer.scaled(scale)
            layer.update(self.step, gradient, optimiser, half_way)
            if backup is not None and index in generation.layers:
                backup.stream(index, self.step, gradient, optimiser)
        if generation.fresh:
            generation.fresh = False
            for index in [i for i in self.layers if i not in generation.held]:
                del self.layers[index]
        generation.keep_alive = None
        self.step += 1

    def replay(self, layer: LayerState, step: int, gradient: torch.Tensor) -> None:
        """Bring a copy of a layer from `step` to the next, by the gradient that others committed it with."""
        layer.update(step, gradient.to(self._device), self._optimiser_at(step))

    def rescue(self, step: int, copied: Mapping[int, LayerState]) -> None:
        """Keep layers that were copied ahead, at `step`, for a generation that will not be."""
        if not self.layers:
            self.step = step
        if step == self.step:
            self.layers = {**copied, **self.layers}

    def _optimiser_at(self, step: int) -> AdamW:
        return self._optimiser._replace(learning_rate=self._training.learning_rate_at(step))

    def digests(self) -> list[list[Any]]:
        """[layer, SHA-256] of every layer held, and of its copy of a tied table."""
        layers = [self.layers[index] for index in sorted(self.layers)]
        digests = [[layer.index, layer.digest()] for layer in layers]
        return digests + [[TIED_TABLE, layer.tied_digest()] for layer in layers if layer.tied is not None]

    def sources(self) -> dict[int, Callable[[], memoryview]]:
        """How to get the bytes of every layer held."""
        return {index: layer.outgoing for index, layer in self.layers.items()}

    def _data(
        self, generation: Generation, ids: Sequence[int], micro_batches: Sequence[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if generation.stage not in (0, generation.stages - 1):
            nothing = torch.empty(0)
            return [(nothing, nothing)] * len(micro_batches)
        size = self._training.micro_batch
        batches = [self._corpus.batch(ids[k * size : (k + 1) * size]) for k in micro_batches]
        return [(inputs.to(self._device), targets.to(self._device)) for inputs, targets in batches]
