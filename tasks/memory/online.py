"""The memory of methods that learn from what they sample: a rollout is written, scored and learned from in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tasks.memory import logits
from tasks.memory.activations import backing, cached, checkpoints, fuses, kept, passing
from tasks.memory.adapted import Adapted
from tasks.memory.parts import Kind, Memory, fullest
from tasks.memory.rows import SCORED_ROWS, Case, trained
from tasks.shape import ModelShape

VALIDATED_ROWS = 32


@dataclass(frozen=True)
class Judge:
    """A reward model: the trunk that it has, and its adapter, None if its trunk was trained whole."""

    shape: ModelShape
    adapted: Adapted | None
    shares: bool
    """Whether its adapter sits on the policy's own base in memory."""

    @property
    def base_bytes(self) -> int:
        return 0 if self.shares else self.shape.weight_bytes

    @property
    def adapter_bytes(self) -> int:
        return 0 if self.adapted is None else 4 * self.adapted.parameters


@dataclass(frozen=True)
class Sampled:
    """How completions are written: `rows` at a time, of at most `new` tokens, after prompts of at most `prompt`."""

    rows: int
    prompt: int
    new: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.new


def writing(shape: ModelShape, adapted: Adapted | None, how: Sampled, kind: Kind, *, merges: bool) -> Memory:
    """What sampling adds. Moments compared on a GPU; on a CPU the allocator keeps what it had in both:

    prompts  a pass over all of them, and their part of the cache
    end      the next tokens' logits, and the cache for all that may be written

    `merges` says that adapters go into float32 weights meanwhile, of which a copy is kept: 4 bytes for each weight that
    they cover.
    """
    copies = 4 * adapted.covered(shape) if merges and adapted and shape.bytes_each == 4 and not shape.in_4_bits else 0
    cache, prompts = how.rows * cached(shape), how.rows * how.prompt * passing(shape)
    end = Memory(weights=copies, logits=logits.drawn(shape, how.rows), kv_cache=how.tokens * cache)
    if kind == "cpu":
        return replace(end, activations=prompts)
    return fullest(Memory(weights=copies, activations=prompts, kv_cache=how.prompt * cache), end)


def ppo(case: Case, judge: Judge | None, how: Sampled, top_layers: int | None) -> Memory:
    """One base in memory for the adapters policy, reference, value and reward; a model each where trained whole.

        sampling  still + the cache + prompts in flight + a copy of the weights under the adapter
        update    still + gradients of the policy or of the value model + activations of a micro-batch, whose adapters
                  are added inside the product + logits of 512 positions

    With `top_layers` the states below are kept for the whole rollout, w H a token, and only the top waits for the
    backward pass. The value model starts as a copy of the reward model, or of the policy where there is none.
    """
    shape, policy = case.model, case.adapted
    top = None if policy is None else policy.top(top_layers)
    learned = case.trained if top is None else top.matrices(shape)
    still = replace(
        case.still(), optimizer=case.moment_bytes * learned,
        reference=4 * (shape.parameters if policy is None else policy.parameters),
        reward=0 if judge is None else judge.base_bytes + judge.adapter_bytes,
        value=_value(case, judge, learned, top_layers),
    )  # fmt: skip
    below = case.batch * how.tokens * shape.hidden * shape.bytes_each if top_layers else 0
    fused = fuses(shape, policy)
    waits = checkpoints(shape, top, fused=fused) if case.checkpointing else kept(shape, top, how.tokens, fused=fused)
    update = replace(
        still, gradients=4 * learned, logits=logits.own(shape, case.micro * how.new, trains=case.trains_head),
        activations=below + case.micro * how.tokens * (waits + backing(shape)),
    )  # fmt: skip
    return fullest(added(still, writing(shape, policy, how, case.kind, merges=True)), update)


def _value(case: Case, judge: Judge | None, learned: int, top_layers: int | None) -> int:
    """Its weights and moments: an adapter on the reward model's base, or a float32 model of its own."""
    head = case.shape.hidden + 1
    if judge is None:
        own = case.shape.parameters if case.adapted is None else case.adapted.parameters
        return 4 * (own + head) + case.moment_bytes * (learned + head)
    if judge.adapted is None:
        return (4 + case.moment_bytes) * (judge.shape.parameters + head)
    trains = judge.adapted.top(top_layers).matrices(judge.shape)
    return judge.adapter_bytes + 4 * head + case.moment_bytes * (trains + head)


def groups(case: Case, judge: Judge | None, how: Sampled, *, reference: int, validates: bool) -> Memory:
    """RLOO and GRPO: the whole rollout is written at once, then goes through TRL's head by micro-batches.

    `reference` is the bytes of the frozen start: an adapter where an adapter goes on, nothing where a fresh one can be
    switched off, a model where all weights train. The reward model has a base of its own in memory.
    """
    shape = case.model
    head = logits.trl(shape, case.micro * how.new, case.kind, trains=case.trains_head)
    held = replace(
        Memory(), reference=reference, reward=0 if judge is None else judge.base_bytes + judge.adapter_bytes,
    )  # fmt: skip
    moments = [
        trained(case, how.tokens, head),
        added(case.still(), writing(shape, case.adapted, how, case.kind, merges=False)),
    ]
    if validates:
        shown = replace(how, rows=VALIDATED_ROWS)
        moments.append(added(case.still(), writing(shape, case.adapted, shown, case.kind, merges=True)))
    if judge is not None:
        moments.append(replace(case.still(), activations=SCORED_ROWS * how.tokens * passing(judge.shape)))
    return added(fullest(*moments), held)


def added(first: Memory, second: Memory) -> Memory:
    """Part by part."""
    theirs = second.parts()
    return Memory(**{name: size + theirs[name] for name, size in first.parts().items()})
