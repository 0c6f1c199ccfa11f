"""The way into TRL's trainers that sample: our token ids, our order, our rewards, our positions, our checkpoints.

TRL samples a rollout for a whole optimizer step at once, scores it, and computes the loss. Nothing here depends on the
micro-batch but the last bits of sums.
"""

from __future__ import annotations

from typing import Any

from tasks.context import Context
from tasks.rl.group_recorder import GroupRecorder
from tasks.rl.groups import Groups, Order
from tasks.rl.rewards import Rewards
from tasks.rl.settings import stop_ids
from tasks.training.logps import trunk_of
from tasks.training.models import base_tokenizer, require_matrices_only
from tasks.training.plain_model import plain_sampling, positions_from_mask
from tasks.training.rows import distinct_prompts, load_rows
from tasks.training.trainable import save_trained, trainable
from tasks.training.trainer import (
    Checked,
    require_finite,
    save_interval,
    score_labelled_positions_only,
    shared_arguments,
    train_on,
)

Row = dict[str, Any]
SHOWN_ROWS = 8
VALIDATION_BATCH = 32


def train(stage: Groups, ctx: Context, trainer: type, config: type, **more: Any) -> dict[str, float]:
    """Train with TRL's `trainer`; `more` are the settings that only this one has. Gives the headline metrics."""
    from datasets import Dataset as Rows

    require_matrices_only(stage.policy)
    tokenizer = base_tokenizer(stage.policy)
    rows, tests = prompts(stage, tokenizer)
    rewards = Rewards(stage, tokenizer, ctx)
    rewards.programs.check([*rows, *tests])
    model, tokenizer = trainable(stage.policy, stage.lora, ctx)
    with plain_sampling(model, tokenizer):
        running = grouped(trainer, Order(stage, len(rows), ctx.seed))(
            model=model,
            reward_funcs=reward_function(stage, rewards, rows, ctx),
            args=arguments(config, stage, ctx, len(rows), **more),
            train_dataset=Rows.from_list([{"prompt": row["prompt_ids"], "place": i} for i, row in enumerate(rows)]),
            processing_class=tokenizer,
        )
        for one in filter(None, (model, running.ref_model)):
            positions_from_mask(trunk_of(one))
        metrics = run(running, stage, tests, rewards, ctx)
    save_trained(model, stage.policy, ctx)
    return metrics


def run(running: Any, stage: Groups, tests: list[Row], rewards: Rewards, ctx: Context) -> dict[str, float]:
    """Measure, train, measure again; gives the headline metrics."""
    recorder = GroupRecorder(ctx, stage)

    def measure() -> None:
        recorder.validated(validate(running.model, tests, rewards, ctx), running.state)

    train_on(running, recorder, ctx, measure)
    measure()
    metrics = recorder.headline(running.state)
    require_finite(metrics, type(stage).__name__.lower())
    return metrics


def prompts(stage: Groups, tokenizer: Any) -> tuple[list[Row], list[Row]]:
    """Distinct prompts to train and to measure on; raises UserError for what could not be trained on."""
    stop_ids(tokenizer, "eos")
    rows = distinct_prompts(load_rows(stage.data, "train"))
    tests = distinct_prompts(load_rows(stage.data, "test"))[: stage.eval_rows]
    stage.require_room([*rows, *tests])
    return rows, tests


def arguments(config: type, stage: Groups, ctx: Context, prompts: int, **more: Any) -> Any:
    """A TRL configuration: one generation for an optimizer step, and checkpoints only between two rollouts.

    TRL keeps what it sampled in memory alone, so that a checkpoint amid the steps on one rollout could not be gone on
    from.
    """
    return config(
        **shared_arguments(stage, ctx, stage.steps(prompts), stage.micro_batch(ctx.execution)),
        save_steps=save_interval(ctx, stage.num_iterations), eval_strategy="no",
        num_generations=stage.num_generations, num_iterations=stage.num_iterations,
        max_completion_length=stage.max_new_tokens, temperature=stage.temperature, top_p=1.0, top_k=0, min_p=None,
        repetition_penalty=1.0, beta=stage.kl_coef, epsilon=stage.cliprange, disable_dropout=True,
        remove_unused_columns=False, use_vllm=False, log_completions=False, **more,
    )  # fmt: skip


def grouped(trainer: type, order: Order) -> type:
    """A TRL trainer class that takes prompts as ids, in our order."""
    score_labelled_positions_only()

    class Grouped(Checked, trainer):  # type: ignore[misc,valid-type]  # the base is only known when it runs
        def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return prompts, None, {}

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Order:
            order.uses = self.args.steps_per_generation * self.num_iterations
            return order

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """The cards that TRL writes into checkpoints hold paths of this machine."""

    return Grouped


def reward_function(stage: Groups, rewards: Rewards, rows: list[Row], ctx: Context) -> Any:
    """The reward as TRL asks for it: ids and places in, one total a completion out."""
    rollouts = stage.rollouts(len(rows))

    def score(
        *, completion_ids: list[list[int]], place: list[int], trainer_state: Any, log_metric: Any, **_: Any
    ) -> list[float]:
        its = [rows[i] for i in place]
        scored = rewards(its, completion_ids)
        log_metric("completions/truncated", sum(scored.truncated) / len(its))
        for name, values in scored.parts.items():
            log_metric(f"scores/{name}", sum(values) / len(its))
        rollout = trainer_state.global_step // stage.num_iterations
        if rollout % max(1, rollouts // 10) == 0 or rollout == rollouts - 1:
            for i in range(0, len(its), stage.num_generations)[:SHOWN_ROWS]:
                episodes, step = (rollout + 1) * stage.batch_size, trainer_state.global_step + 1
                ctx.samples.log(scored.sample(its, i) | {"episodes": episodes}, step=episodes, optimizer_step=step)
        return scored.totals

    return score


def validate(model: Any, tests: list[Row], rewards: Rewards, ctx: Context) -> dict[str, float]:
    """Mean score and length on held-out prompts, the same random numbers each time; nothing without any."""
    import torch

    from tasks.training.sampling import sample

    if not tests:
        return {}
    stage, was_training = rewards.stage, model.training
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(ctx.seed)
        made = sample(
            model, rewards.tokenizer, tests, max_new_tokens=stage.max_new_tokens, temperature=stage.temperature,
            batch_size=VALIDATION_BATCH, ctx=ctx,
        )  # fmt: skip
        scored = rewards(tests, [one["completion_ids"] for one in made])
    model.train(was_training)
    length = sum(len(one["completion_ids"]) for one in made) / len(made)
    return {"validation/score": sum(scored.totals) / len(made), "validation/length": length}
