"""What a run used, kept and removed: as JSON for programs, and as a page for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .align import Segment
from .fetch import Package
from .recipe import LICENCES


def packages_used(packages: Sequence[Package], parts: Mapping[str, Sequence[Segment]]) -> dict[str, dict[str, Any]]:
    """Name -> version, sha256, licence, and how many of the texts that were kept are from this package, by split."""
    found = {}
    for package in packages:
        name, source, language = package.need
        counts = {
            split: sum(
                len(row.texts) if language is None else language in row.texts
                for row in rows
                if row.key.startswith(f"{source}:")
            )
            for split, rows in parts.items()
        }
        about = {"version": package.version, "sha256": package.sha256, "licence": LICENCES[source], "texts": counts}
        found[name] = about
    return found


def report(
    packages: Mapping[str, Any],
    differing: Sequence[str],
    parts: Mapping[str, Sequence[Segment]],
    languages: Sequence[str],
    removed: Counter[tuple[str, str]],
    pieces: Mapping[str, Any],
    jobs: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """Everything a run has to tell."""
    reasons = sorted({reason for reason, _ in removed})
    return {
        "languages": list(languages),
        "segments": {split: len(rows) for split, rows in parts.items()},
        "texts": {
            language: {split: sum(language in row.texts for row in rows) for split, rows in parts.items()}
            for language in languages
        },
        "removed": {
            reason: {where: count for (each, where), count in sorted(removed.items()) if each == reason}
            for reason in reasons
        },
        "tokenizer": pieces,
        "jobs": {name: len(rows) for name, rows in jobs.items()},
        "packages": packages,
        "differing_from_the_recorded_run": list(differing),
    }


def page(found: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    splits = list(found["segments"])
    lines = ["# The corpus of this run", "", "Segments (one text in two or more languages):", ""]
    lines += _table(["", *splits], [["segments", *found["segments"].values()]])
    lines += ["", "Texts:", ""]
    lines += _table(["language", *splits], [[name, *row.values()] for name, row in found["texts"].items()])
    lines += ["", "Removed: for each reason, how many texts of a language, or segments of a split:", ""]
    rows = [
        [reason, ", ".join(f"{where} {n:,}" for where, n in row.items())] for reason, row in found["removed"].items()
    ]
    lines += _table(["reason", "removed"], rows)
    tokenizer = found["tokenizer"]
    lines += ["", f"Tokenizer: {tokenizer['tokens']:,} tokens. On training and on test text:", ""]
    numbers = [
        [name, f"{row['unknown']:.3%}", f"{tokenizer['test'][name]['unknown']:.3%}", *list(row.values())[1:]]
        for name, row in tokenizer["train"].items()
    ]
    lines += _table(["language", "unknown", "unknown (test)", "characters a piece", "pieces a text"], numbers)
    lines += ["", "Labelled data:", "", *_table(["file", "rows"], [list(row) for row in found["jobs"].items()])]
    lines += ["", "Packages, with the texts kept of each:", ""]
    used = [
        [name, row["version"], row["licence"], *row["texts"].values(), f"`{row['sha256'][:16]}`"]
        for name, row in found["packages"].items()
    ]
    lines += _table(["package", "version", "licence", *splits, "sha256 begins"], used)
    lines += ["", "Different from the recorded run:", ""]
    lines += [f"- {line}" for line in found["differing_from_the_recorded_run"]] or ["nothing."]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table in Markdown; numbers stand right."""
    right = [bool(rows) and isinstance(rows[0][i], (int, float)) for i in range(len(head))]
    cells = [[f"{each:,}" if isinstance(each, int) else str(each) for each in row] for row in rows]
    body = ["| " + " | ".join(row) + " |" for row in cells]
    return ["| " + " | ".join(head) + " |", "|" + "|".join("---:" if each else "---" for each in right) + "|", *body]
