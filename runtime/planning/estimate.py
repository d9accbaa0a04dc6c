"""How long a step takes and whether it fits in memory, by the layers: for layouts nobody measured."""

from __future__ import annotations

from runtime.planning.layout import Cuts
from runtime.planning.model import ModelSpec
from runtime.planning.training import BYTES_PER_VALUE
from runtime.planning.types import Layout

# Per parameter, two moments; weights and gradients in the training type, and in fp32 too if that differs.
OPTIMIZER_BYTES_PER_PARAM = 8
USABLE_MEMORY = 0.92  # the rest goes to the CUDA context, communication buffers and fragmentation
RECOMPUTE_WORK = 4 / 3  # forward once more: 1 + 2 becomes 1 + 1 + 2 units of work
OPTIMIZER_FLOPS_PER_PARAM = 12
# What Parcae's own engine holds per parameter: weights and moments in fp32; and one gradient in fp32 while it
# updates. The accumulated gradient comes besides, in the type that the device has it.
STATE_BYTES = 12
UPDATE_BYTES = 4
LAYER_OVERHEAD_S = 20e-6  # launching a layer's kernels, per micro-batch


def estimate_iteration_s(spec: ModelSpec, layout: Layout, cuts: Cuts) -> tuple[float | None, str]:
    """Seconds a step of 1F1B takes under `layout`; or None and the arithmetic of why it does not fit.

    The slowest stage sets the pace: (m + P - 1) slots for the m micro-batches of the fullest pipeline, then a
    ring all-reduce of the largest stage's gradients over D replicas, the exchange of a tied table's gradient
    between both ends, and the optimiser. A stage whose activations do not fit recomputes them, at a third
    more work. Where the layers were measured, their times take the place of those by operations.
    """
    training, device = spec.training, spec.device
    value_bytes = BYTES_PER_VALUE[training.dtype]
    param_bytes = 2 * value_bytes + OPTIMIZER_BYTES_PER_PARAM + (8 if value_bytes < 4 else 0)
    gradient_bytes, message_s = value_bytes, 0.0
    measured = spec.measured
    if measured is not None:
        gradient_bytes, message_s = measured.gradient_bytes_per_param, measured.message_s
        param_bytes = STATE_BYTES + gradient_bytes + UPDATE_BYTES
    usable_bytes = device.memory_bytes * USABLE_MEMORY
    slots = -(-training.micro_batches // layout.pipelines)
    slowest_slot_s, slowest_reduce_s, slowest_apply_s = 0.0, 0.0, 0.0
    for stage, members in enumerate(cuts):
        layers = [spec.layers[index] for index in members]
        params = sum(layer.params for layer in layers)
        in_flight = min(layout.stages - stage, slots) * training.micro_batch
        stored = params * param_bytes
        kept = in_flight * sum(layer.activation_bytes_per_sample for layer in layers)
        work = 1.0
        if training.recompute or stored + kept > usable_bytes:
            work = RECOMPUTE_WORK
            kept = in_flight * sum(layer.output_bytes_per_sample for layer in layers)
            kept += training.micro_batch * max(layer.activation_bytes_per_sample for layer in layers)
            if stored + kept > usable_bytes:
                return None, (
                    f"{layout}: stage {stage} needs {stored / 1e9:.3g} GB for {params:,} parameters and "
                    f"{kept / 1e9:.3g} GB for activations; {device.name} has {usable_bytes / 1e9:.3g} GB"
                )
        if measured is None:
            flops = 3 * work * training.micro_batch * sum(layer.forward_flops_per_sample for layer in layers)
            slot_s = flops / device.flops_per_s + 3 * LAYER_OVERHEAD_S * len(layers)
            apply_s = OPTIMIZER_FLOPS_PER_PARAM * params / device.flops_per_s
        else:
            slot_s = sum(measured.work_s[index] for index in members)
            if work > 1 and not training.recompute:  # what was measured recomputes where the template does
                slot_s += sum(measured.forward_s[index] for index in members)
            apply_s = sum(measured.optimiser_s[index] for index in members)
        if layout.stages > 1:
            crossing = training.micro_batch * layers[-1].output_bytes_per_sample
            slot_s += 2 * (crossing / device.link_bytes_per_s + message_s)
        slowest_slot_s = max(slowest_slot_s, slot_s)
        share = 2 * (layout.pipelines - 1) / layout.pipelines
        slowest_reduce_s = max(slowest_reduce_s, share * params * gradient_bytes / device.link_bytes_per_s)
        slowest_apply_s = max(slowest_apply_s, apply_s)
    tied_bytes = gradient_bytes * spec.gpt.tied_params if spec.gpt and layout.stages > 1 else 0
    exchange_s = tied_bytes / device.link_bytes_per_s
    return (slots + layout.stages - 1) * slowest_slot_s + slowest_reduce_s + exchange_s + slowest_apply_s, ""
