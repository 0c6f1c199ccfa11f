"""Questions to an endpoint, several at the same time, until all have their answer or it makes no sense to go on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from artifacts.errors import InterruptedStage, StageError
from tasks.context import Context
from tasks.judging.answers import Answers
from tasks.judging.endpoint import Endpoint, Passing, Unanswered
from tasks.judging.pairs import Question


def ask_endpoint(
    endpoint: Endpoint, questions: list[Question], answers: Answers, enough: Callable[[], bool], ctx: Context
) -> None:
    """Ask what has no answer yet, several questions at a time, until there is nothing left or `enough` says so.

    The first one goes alone, so that an endpoint that is not there ends the stage at once. Asked to end, the stage
    still takes the answers that are on their way. Raises StageError or InterruptedStage; no answer is lost.
    """
    todo = answers.missing(questions)
    if not todo:
        return
    first = todo.pop(0)
    try:
        answers.keep(first, endpoint.ask_once(first.text))
    except Unanswered as error:
        answers.fail(first, str(error))
    except Passing as problem:
        if problem.status is None:
            raise StageError(f"{problem}; start it or correct `endpoint`, and run the same command again") from None
        todo.append(first)
    with ctx.stop.patience():
        _ask_all(endpoint, todo, answers, enough, ctx)
    if ctx.stop.asked and answers.missing(questions):
        raise InterruptedStage(f"{len(answers.given)} of {len(questions)} answers are kept; run again for the rest")


def _ask_all(
    endpoint: Endpoint, questions: list[Question], answers: Answers, enough: Callable[[], bool], ctx: Context
) -> None:
    """In parallel; every answer that comes is kept, in whatever way this ends."""

    def ask(question: Question) -> None:
        if endpoint.halted.is_set() or ctx.stop.asked:
            return
        try:
            answers.keep(question, endpoint.ask(question.text))
        except Unanswered as error:
            if not endpoint.halted.is_set():
                answers.fail(question, str(error))
        if enough():
            endpoint.halted.set()

    with ThreadPoolExecutor(ctx.execution.requests) as pool:
        try:
            asking = [pool.submit(ask, question) for question in questions]
            for done, asked in enumerate(as_completed(asking), start=1):
                asked.result()
                ctx.progress(done, len(questions), "answers")
                if ctx.stop.asked:
                    endpoint.halted.set()
        finally:
            endpoint.halted.set()
