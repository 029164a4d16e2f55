"""`ernie-m answer`: where in a text the answer to a question is. `tasks.Answerer` does the work."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..tasks import Answerer
from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .numbers import positive
from .running import OUTPUT, add_running, contents, lines_of, naming, running, show

WINDOW = 64

DESCRIPTION = "Find the answer to a question in each text. Long texts are read in windows."
EPILOG = f"""\
{OUTPUT}
  {{"index": 0, "text": "...", "answers": [{{"text": "in London", "start": 10, "end": 19, "score": 0.71}}, ...]}}
  With --no-answer, an answer with an empty text means that the text has no answer.

examples:
  ernie-m answer --model DIR --question "Where did Ada live?" "Ada lived in London."
  ernie-m answer --model DIR --question "Who wrote it?" --top-k 3 --no-answer --file paragraphs.txt"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "answer", "find the answer to a question", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser, head=True)
    add_option = parser.add_argument
    add_option("--question", metavar="TEXT", required=True, help="what to ask of each text")
    add_option("--top-k", metavar="N", type=positive, default=1, help="answers per text (default: %(default)s)")
    add_option("--no-answer", action="store_true", help='allow "no answer" as an answer')
    longest = "maximum length of an answer, in tokens (default: %(default)s)"
    add_option("--longest", metavar="N", type=positive, default=15, help=longest)
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask the question of all texts."""
    found = texts(arguments)
    count = 0
    with running(arguments) as options:
        answerer = Answerer.from_pretrained(model_directory(arguments), **options)
        for window in windows(found, WINDOW):
            given = contents(window)
            questions = [arguments.question] * len(given)
            with naming(window, questions="--question"):
                results = answerer.answer(questions, given, arguments.top_k, arguments.no_answer, arguments.longest)
            for text, answers in zip(given, results, strict=True):
                result = {"index": count, "text": text, "answers": [asdict(answer) for answer in answers]}
                rows = [(f"{answer.score:.3f}", answer.text or "(no answer)") for answer in answers]
                show(arguments, result, [text, *lines_of(rows)])
                count += 1
    return 0
