"""`ernie-m classify`: the classes of texts or pairs of texts. `tasks.Classifier` does the work."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..tasks import POLICIES, Classifier
from ..tasks.classifying import TEMPLATE
from .command import add_command
from .input import add_arguments, texts, windows
from .model import add_model, model_directory
from .numbers import positive
from .running import OUTPUT, add_running, contents, lines_of, naming, running, show

WINDOW = 256

DESCRIPTION = "Put texts into the classes of a head, or into any labels through a head that judges entailment."
EPILOG = f"""\
labels that the head never saw:
  With --label, once for each, the head judges whether the text entails the template with the label in it. It must have
  a class that is called entailment.

texts longer than the model's maximum length:
  truncate     truncate them, and report how many there were; the default
  error        stop at the first
  window-mean  the mean over windows that overlap

{OUTPUT}
  {{"index": 0, "text": "...", "labels": [{{"label": "calc", "score": 0.93}}, ...]}}

examples:
  ernie-m classify --model DIR "Inserts a new sheet." --top-k 3
  ernie-m classify --model DIR --label sports --label politics --file news.txt"""


def add(commands: Any) -> None:
    """Declare the command's arguments."""
    parser = add_command(commands, "classify", "put texts into classes", DESCRIPTION, EPILOG, run)
    add_arguments(parser)
    add_model(parser, head=True)
    add_option = parser.add_argument
    add_option("--pair", metavar="TEXT2", help="pair each text with TEXT2, which comes second")
    add_option("--top-k", metavar="N", type=positive, help="classes per text (default: 1)")
    add_option("--label", metavar="NAME", action="append", help="see below; all labels are shown, best first")
    add_option("--template", metavar="TEXT", help=f"with {{}} for the label (default: {TEMPLATE})")
    add_option("--multi-label", action="store_true", help="several of the labels may be true")
    add_option("--long", choices=POLICIES, default="truncate", help="see below (default: %(default)s)")
    add_running(parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify all texts."""
    if not arguments.label and (arguments.template is not None or arguments.multi_label):
        name = "--multi-label" if arguments.template is None else "--template"
        raise ValueError(f"{name}: expected --label too")
    for name, value in (("--pair", arguments.pair), ("--top-k", arguments.top_k)):
        if arguments.label and value is not None:
            raise ValueError(f"{name}, --label: expected only one of the two")
    found = texts(arguments)
    count = 0
    with running(arguments) as options:
        classifier = Classifier.from_pretrained(model_directory(arguments), long=arguments.long, **options)
        for window in windows(found, WINDOW):
            given = contents(window)
            with naming(window):
                if arguments.label:
                    template = TEMPLATE if arguments.template is None else arguments.template
                    results = classifier.zero_shot(given, arguments.label, template, arguments.multi_label)
                else:
                    pairs = None if arguments.pair is None else [arguments.pair] * len(given)
                    results = classifier.classify(given, pairs, arguments.top_k or 1)
            for text, labels in zip(given, results, strict=True):
                result = {"index": count, "text": text, "labels": [asdict(label) for label in labels]}
                rows = [(f"{label.score:.3f}", label.label) for label in labels]
                show(arguments, result, [text, *lines_of(rows)])
                count += 1
    return 0
