"""What `--help` says of each verb: what it is for, and examples, each of which a test types."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

WIDTH = 80


@dataclass(frozen=True)
class Guide:
    """A verb in one line, in a paragraph or two, and in examples: commands, and what each is for."""

    summary: str
    description: str
    examples: Mapping[str, str]

    @property
    def about(self) -> str:
        """The paragraphs, wrapped."""
        paragraphs = self.description.split("\n")
        return "\n\n".join(textwrap.fill(text, WIDTH, break_on_hyphens=False) for text in paragraphs)

    @property
    def shown(self) -> str:
        """The examples, to stand at the end."""
        return "examples:\n" + "\n".join(f"  # {what}\n  $ {command}" for command, what in self.examples.items())


RUN = "RUN is a run_id as `align runs` lists them, its beginning, or `last`."
STAGE = "STAGE is RUN:name or the beginning of a key."
GROUPS: Mapping[str, Mapping[str, Guide]] = {
    "run recipes": {
        "plan": Guide(
            "what a run would do, and why; runs nothing",
            "For each stage of a recipe: whether it is cached, and if not, which field differs from the nearest "
            "earlier result; its parameters, optimizer steps and memory. It takes about a second and trains nothing.",
            {
                "align plan pipelines/quickstart.yaml dpo.beta=0.3": "what another beta would train again",
                "align plan pipelines/quickstart.yaml dpo.beta=0.3 --why dpo": "every difference that makes dpo run",
                "align plan pipelines/quickstart.yaml --memory --device t4": "would it fit a T4, and what takes room",
            },
        ),
        "run": Guide(
            "run a recipe; what is cached is not run again",
            "Runs a recipe's stages in order, each as a cached Prefect task tracked in MLflow, and ends with the "
            "evaluated policies compared. A run that was killed goes on where it stopped when the same command is "
            "given again. Fields that differ from the recipe are stage.field=value; a bar makes a branch for each "
            "value. `align logs last -f` in another terminal follows what the stages say.",
            {
                "align run pipelines/quickstart.yaml": "everything, but for what is cached",
                "align run pipelines/quickstart.yaml 'dpo.beta=0.1|0.3' --jobs 2": "two branches, two stages at a time",
                "align run pipelines/tiny.yaml sft.learning_rate=1e-3 --until sft --exec threads=2":
                    "one stage and what it needs, with another field, on two threads",
            },
        ),
    },
    "look at runs": {
        "runs": Guide(
            "the runs so far, the newest first",
            "Each run with its status, when it started, how many of its stages ran or were cached, the seconds that "
            "these took and the tokens that they trained on. A narrow terminal shows only `finished/all` stages.",
            {
                "align runs": "all of them",
                "align runs --json": "the same with every stage and figure, for a program",
            },
        ),
        "show": Guide(
            "one run: its stages, figures, lineage and folders",
            f"A run's stages with status, time, headline figure and key, its policies compared, and which stage goes "
            f"on from which. {RUN}",
            {
                "align show last": "the newest",
                "align show last --json": "all that is known of it, as `align run --json` prints it",
            },
        ),
        "logs": Guide(
            "what a run's stages said; -f follows while it runs",
            "The lines that the stages of a run said, errors included, with their progress every half a minute; with "
            "-f also those still to come, until the run ends. A cached stage says what it said when it was made. "
            f"{RUN}",
            {
                "align logs last": "the newest run, all its stages",
                "align logs last dpo": "one stage of it",
                "align logs -f": "follow the newest run",
            },
        ),
        "open": Guide(
            "open a run or stage in MLflow's pages, or in Prefect's",
            "Prints the link and opens it in the browser. Exit status 1 if nothing serves these pages now: "
            f"`align up` does. {RUN} {STAGE}",
            {
                "align open last": "the newest run in MLflow",
                "align open last:dpo": "one stage: its curves, parameters, model",
                "align open last --prefect": "its flow run in Prefect",
            },
        ),
        "compare": Guide(
            "policies side by side, from runs or evaluate stages",
            "Evaluated policies with tests prompt by prompt, and with what each cost and needed. Nothing is "
            f"evaluated again. {RUN} {STAGE}",
            {
                "align compare last": "the policies of the newest run",
                "align compare last --html report.html --completions 5": "as one page, and five prompts side by side",
                "align compare last --open": "MLflow's page with the curves of all of them",
            },
        ),
    },
    "use models": {
        "chat": Guide(
            "talk to a model: a stage's output, or a folder",
            f"Reads turns from standard input and answers; /reset forgets the conversation. {STAGE}",
            {
                "align chat last:merge_dpo": "the merged model of the newest run",
                "align chat last:dpo --temperature 0": "an adapter on its base, the likeliest token each time",
            },
        ),
        "retrain": Guide(
            "train if data or base changed, and promote what beats the champion",
            "Runs a recipe if its data or base are others than when the champion was decided, measures the new model "
            "and the champion on the same held-out prompts, and promotes it if it meets the conditions; else the "
            "champion stays, and the condition that failed is named with its figures. The same that the deployment "
            "align-retrain does on a schedule.",
            {
                "align retrain pipelines/quickstart.yaml": "the last complete model of it against the champion",
                "align retrain pipelines/quickstart.yaml --must 'win_rate_low>0.5' --must 'check_rate>=champion'":
                    "only if it surely wins, and passes as many checks",
            },
        ),
        "promote": Guide(
            "register a complete model in MLflow, through a gate if one is given",
            "Makes a complete model a version in MLflow's registry and gives it an alias. Conditions are read off "
            "its evaluation, and may set it beside the champion's; one that fails is exit status 1 and moves "
            f"nothing. {STAGE}",
            {
                "align promote last:merge_dpo --as candidate": "register it",
                "align promote last:merge_dpo --as champion --must 'win_rate_low>0.5' --must 'check_rate>=champion'":
                    "only if it is surely better than what it started from, and no worse than the champion",
            },
        ),
        "rollback": Guide(
            "make the champion before the champion again",
            "Swaps the aliases `champion` and `previous` of a registered model.",
            {"align rollback --name quickstart": "of this model"},
        ),
    },
    "serve": {
        "up": Guide(
            "start Prefect, MLflow and what runs deployments here, unless they are up",
            "Starts the servers on this machine, on the same databases that runs without servers use; runs then use "
            "them without being told. They outlive the command; `align down` ends them.",
            {
                "align up": "start what is not there",
                "align up --status": "only say what is; exit status 1 unless all of it answers",
                "align up --host 0.0.0.0 --mlflow-port 5050": "for other machines too; MLflow on this port",
            },
        ),
        "down": Guide(
            "end what `align up` started, and nothing else",
            "Ends the servers. A served flow run is asked to save and end first, and goes on when run again.",
            {"align down": "end them"},
        ),
        "doctor": Guide(
            "what is wrong on this machine, and what to do about it",
            "Looks at versions, servers, ports, disk, memory, devices, locks and runs; exit status 1 if something is "
            "broken.",
            {"align doctor": "look at everything"},
        ),
    },
    "keep order": {
        "sync": Guide(
            "send MLflow what it lacks",
            "Sends what was run with --offline-tracking or while the server was away, and ends what MLflow and "
            "Prefect still show as running though its process is gone. Can be repeated.",
            {"align sync": "send all of it"},
        ),
        "gc": Guide(
            "show what no kept run refers to; with --yes, remove it",
            "Results and drafts under $ALIGN_HOME that no run refers to, with what each would free. Nothing is "
            "removed without --yes, and never what is registered in MLflow or being worked on.",
            {
                "align gc": "what could go",
                "align gc --keep-runs 5 --yes": "forget all but the newest five runs, and remove what only they used",
            },
        ),
        "completion": Guide(
            "what makes your shell complete `align` with the tab key",
            "Prints a script for your shell, which completes verbs, options, recipes, stages, fields and runs.",
            {
                "align completion bash": "in ~/.bashrc: eval \"$(align completion bash)\"",
                "align completion zsh": "in ~/.zshrc, after compinit: eval \"$(align completion zsh)\"",
                "align completion fish": "in ~/.config/fish/config.fish: align completion fish | source",
            },
        ),
    },
}  # fmt: skip
VERBS: Mapping[str, Guide] = {name: guide for group in GROUPS.values() for name, guide in group.items()}


def overview() -> str:
    """All verbs in their groups, one line each."""
    longest = max(map(len, VERBS))
    lines: list[str] = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:{longest}}  {guide.summary}" for name, guide in group.items())]
    return "\n".join(
        [*lines, "", "`align VERB --help` has examples. Start with: align run pipelines/tiny.yaml"]
    ).lstrip()
