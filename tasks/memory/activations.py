"""What a pass keeps of a layer, in bytes for each token.

With H the width of the states, A that of the queries, I that of the MLP's middle, and w bytes for each number of the
states (4 over 4-bit layers, which give what they take). Attention never has its (T, T) scores: torch's kernels make
them block by block, but a batch's mask is kept in each layer, w T a token. Keys and values are kept as wide as the
queries, since a padded batch repeats them.
"""

from __future__ import annotations

from tasks.memory.adapted import Adapted
from tasks.shape import ModelShape

LLAMA: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",),
)  # fmt: skip
GPT2 = (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",))
GPTJ = (("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"), ("attn.out_proj",), ("mlp.fc_out",))
"""The linear modules of a layer, those together that read the same input."""


def kept(shape: ModelShape, adapted: Adapted | None, width: int, *, fused: bool = False) -> int:
    """Bytes a token that wait for the backward pass, in all layers from the lowest that trains.

    `adapted` None: all weights train. `width` is T, the tokens of a padded row. `fused` says that adapters are added
    inside the product (tasks/rl/lora_linear.py), so that all share one input.
    """
    layers = [None] * shape.layers if adapted is None else list(adapted.layers)
    first = 0 if adapted is None else adapted.lowest
    inside = sum(kept_in_layer(shape, names, adapted, fused=fused) for names in layers[first:])
    masks = len(layers[first:]) * width * shape.bytes_each
    return inside + masks + 4 * shape.hidden  # the last norm


def checkpoints(shape: ModelShape, adapted: Adapted | None, *, fused: bool = False) -> int:
    """Bytes a token with checkpointing: w H into each layer that the backward pass comes to, and one layer's all."""
    first = 0 if adapted is None else min(adapted.lowest, shape.layers - 1)
    names = None if adapted is None else adapted.layers[-1]
    between = (shape.layers - first + 1) * shape.hidden * shape.bytes_each
    return between + kept_in_layer(shape, names, adapted, fused=fused)


def kept_in_layer(
    shape: ModelShape, names: frozenset[str] | None, adapted: Adapted | None, *, fused: bool = False
) -> int:
    """Bytes a token and layer; `names` are its modules with an adapter, None where all weights train.

        Llama:  norms 2 x 4 H, and 2 w H more if their weights train;  attention 4 w A;  MLP 3 w I (gate, its SiLU, up)
        GPT-2, GPT-J:  norms w H each;  attention 4 w A;  GELU in parts 4 w I

    and the inputs of what trains (`_inputs`). DoRA's magnitudes also want the outputs of every base layer, w each, and
    of every adapter, 4 each.
    """
    sizes = {name: (inputs, outputs) for name, inputs, outputs in shape.linears}
    width, groups = shape.bytes_each, _groups(shape)
    across, middle = sizes[groups[1][0]][0], sizes[groups[-1][0]][0]
    if groups is LLAMA:
        norms = 2 * 4 * shape.hidden + (2 * width * shape.hidden if names is None else 0)
        own = norms + 4 * width * across + 3 * width * middle
    else:
        own = (2 if groups is GPT2 else 1) * width * shape.hidden + 4 * width * (across + middle)
    outputs = sum(sizes[name][1] for name in names or ()) if adapted and adapted.dora else 0
    inputs = sum(_inputs(shape, group, names, adapted, fused) for group in groups)
    return own + inputs + (width + 4) * outputs


def _inputs(
    shape: ModelShape, group: tuple[str, ...], names: frozenset[str] | None, adapted: Adapted | None, fused: bool
) -> int:
    """Bytes a token of the input that modules share, as kept for those that train, and of what LoRA's A makes of it.

    In float32 one for all (none for attention's output, which attention keeps itself). In half precision peft makes a
    float32 copy for each adapter; dropout makes a copy and a mask for each, on a CPU in float32 too.
    """
    inputs = next(size for name, size, _ in shape.linears if name == group[0])
    if names is None or adapted is None:
        return 0 if group == _groups(shape)[1] else inputs * shape.bytes_each
    here = sum(name in names for name in group)
    small = here * adapted.rank * (shape.bytes_each if fused else 4)
    if adapted.dropout and not fused:
        return here * inputs * (4 + 4) + small
    if shape.bytes_each == 4 or fused:
        shared = 0 if group == _groups(shape)[1] else inputs * shape.bytes_each
        return (shared if here else 0) + small
    return here * inputs * 4 + small


def copies(shape: ModelShape, adapted: Adapted | None) -> int:
    """Bytes that wait for the backward pass whatever is passed: peft's DoRA on Conv1D transposes the weights."""
    return 4 * adapted.covered(shape) if adapted and adapted.dora and _groups(shape) is GPT2 else 0


def fuses(shape: ModelShape, adapted: Adapted | None) -> bool:
    """Whether adapters are added inside the product where that can be (tasks/rl/lora_linear.py)."""
    return adapted is not None and not adapted.dora and not shape.in_4_bits and _groups(shape) is not GPT2


def passing(shape: ModelShape) -> int:
    """Bytes a token of a pass that keeps nothing: residual, norm and the widest of a layer at work, in float32."""
    return 4 * (4 * shape.hidden + 3 * _middle(shape))


def backing(shape: ModelShape) -> int:
    """Bytes a token of the gradients in flight while the backward pass is in a layer."""
    return 4 * (4 * shape.hidden + 3 * _middle(shape))


def cached(shape: ModelShape) -> int:
    """Bytes a token of keys and values, and of the copies that growing the cache of one layer takes."""
    keys = 2 * _keys(shape) * shape.bytes_each
    return shape.layers * keys + keys


def _middle(shape: ModelShape) -> int:
    return next(inputs for name, inputs, _ in shape.linears if name == _groups(shape)[-1][0])


def _keys(shape: ModelShape) -> int:
    """The width of the keys: less than that of the queries where several heads share them."""
    sizes = {name: outputs for name, _, outputs in shape.linears}
    keys = next((size for name, size in sizes.items() if name.endswith("k_proj")), None)
    return shape.hidden if keys is None else keys


def _groups(shape: ModelShape) -> tuple[tuple[str, ...], ...]:
    names = {name for name, _, _ in shape.linears}
    return next(groups for groups in (LLAMA, GPT2, GPTJ) if groups[0][0] in names and groups[-1][0] in names)
