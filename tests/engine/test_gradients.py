"""Memory for gradients is found ahead or used again, and never shared by two who may write to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.data import Corpus
from runtime.engine.gradients import bind_gradients, flat_values, lacking, new_gradient, take
from runtime.engine.trainer import Trainer
from runtime.planning.model import parse_model
from tests.engine.driver import TEMPLATES, tiny_template

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=5)


@dataclass
class Waiter:
    """What a generation's waiter says of it."""

    abandoned: bool = False


@dataclass
class Cut:
    """A generation as far as its gradients go."""

    own_stages: dict[int, list[int]]
    waiter: Waiter = field(default_factory=Waiter)
    gradients: dict[int, torch.Tensor] = field(default_factory=dict)
    room: list[torch.Tensor] = field(default_factory=list)

    @property
    def held(self) -> list[int]:
        """Every layer."""
        return [index for layers in self.own_stages.values() for index in layers]

    def take_room(self) -> list[torch.Tensor]:
        """What was found ahead."""
        return self.room


def trainer() -> Trainer:
    """Of gpt-tiny, in exact mode."""
    template = tiny_template()
    model = parse_model(template, source="gpt-tiny")
    assert model.gpt is not None
    corpus = Corpus([TEMPLATES / "models" / "gpt-tiny.toml"], model.gpt.seq, model.gpt.vocab)
    return Trainer(model, 1, corpus, exact=True, point=lambda name: None)


@given(SIZES, SIZES)
def test_what_lacks_is_what_a_binding_has_to_make(have: list[int], want: list[int]) -> None:
    """Said to lack nothing, pieces serve every wish; each piece serves one wish, and is never too small."""
    pieces = [torch.zeros(size) for size in have]
    missing, left = lacking(pieces, want), list(pieces)
    served = 0
    for values in want:
        piece = take(left, values)
        if piece is not None:
            assert values <= piece.numel() <= 1.5 * values
            served += 1
    assert len(missing) == len(want) - served and len(left) == len(pieces) - served


def test_a_stage_like_the_last_gets_its_memory_and_another_gets_it_ahead() -> None:
    """The same layers: nothing is made ahead, and the flat gradient stays where it was. More layers: a new
    flat gradient is made ahead, and the binding makes none."""
    worker = trainer()
    worker.layers = {index: worker.new_layer(index, from_seed=True) for index in range(5)}
    first, same, longer = Cut({0: [0, 1]}), Cut({0: [0, 1]}), Cut({0: [0, 1, 2, 3, 4]})
    worker.enter(first, 0, {})  # type: ignore[arg-type]
    assert worker.make_room(same, first) == []  # type: ignore[arg-type]
    worker.enter(same, 0, {}, [*first.gradients.values()])  # type: ignore[arg-type]
    assert same.gradients[0].data_ptr() == first.gradients[0].data_ptr()
    longer.room = worker.make_room(longer, same)  # type: ignore[arg-type]
    (made,) = longer.room
    assert made.numel() == flat_values(layer.size for layer in worker.layers.values())
    worker.enter(longer, 0, {}, [*same.gradients.values()])  # type: ignore[arg-type]
    assert longer.gradients[0].data_ptr() == made.data_ptr()
    assert all(layer.gradient.dtype is torch.float64 for layer in worker.layers.values())


def test_memory_of_an_abandoned_generation_is_not_counted_on() -> None:
    """An abandoned reduction may still write there: memory for the next generation is made anew."""
    worker = trainer()
    worker.layers = {index: worker.new_layer(index, from_seed=True) for index in range(2)}
    first, same = Cut({0: [0, 1]}), Cut({0: [0, 1]})
    worker.enter(first, 0, {})  # type: ignore[arg-type]
    first.waiter.abandoned = True
    (made,) = worker.make_room(same, first)  # type: ignore[arg-type]
    assert made.data_ptr() != first.gradients[0].data_ptr()


def test_slices_of_used_memory_do_not_overlap() -> None:
    """Two layers bound into one old piece write to places of their own, inside it."""
    worker = trainer()
    layers = [worker.new_layer(index, from_seed=True) for index in (0, 1)]
    old = new_gradient(flat_values(layer.size for layer in layers) + 100, True, torch.device("cpu"))
    memory = [old]
    flat = bind_gradients(layers, True, memory).zero_()
    assert memory == [] and flat.data_ptr() == old.data_ptr()
    layers[0].gradient.fill_(1.0)
    assert float(layers[1].gradient.sum()) == 0.0 and float(old.sum()) == layers[0].size
