"""The list in docs/troubleshooting.md, from the sentences that the source raises.

    python docs/make_troubleshooting.py

Every error that a user can meet is a sentence in a `raise`; what is put in while the program runs stands
as an ellipsis. A test compares the page with the source, so no sentence is missing and none is old.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from generated import filled

SOURCE = Path(__file__).parent.parent / "compressor"
PAGE = Path(__file__).parent / "troubleshooting.md"
ERRORS = {
    "InputError": 2,
    "MendableError": 2,
    "DamagedError": 2,
    "OtherSettings": 2,
    "QualityError": 3,
    "MachineError": 4,
    "VerificationError": 5,
}
# Folders of the package, as a user meets them; the first that a path begins with.
TOPICS = {
    "analysis/doctor": "compressor doctor",
    "analysis": "inspect and estimate",
    "cli": "Options",
    "config": "Options",
    "front": "From Python",
    "adapters": "In other libraries",
    "job": "Before and during a job",
    "model/ranks": "Several processes",
    "model/pulse": "Several processes",
    "model/families": "What a model family can do",
    "model": "Reading a model",
    "text": "Texts",
    "scoring": "Scores",
    "planning": "Plans and sizes",
    "measuring": "Measured allocations",
    "solvers": "Scores",
    "repairing": "Repair",
    "recovery": "Recovery",
    "sparse": "Single weights",
    "quantization": "Low precision",
    "writing/gguf": "Exporting to GGUF",
    "writing": "Writing a result",
    "cutting": "Plans and sizes",
    "verification": "Verification",
    "evaluation": "Measuring a model",
    "report": "Pictures",
}


def sentences() -> Iterator[tuple[str, int, str]]:
    """Topic, exit code and text of every error."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    returned = defaultdict(list)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                texts = (r.value for r in ast.walk(node) if isinstance(r, ast.Return))
                returned[node.name] += [t for t in texts if is_text(t)]
    for path, tree in trees.items():
        place = path.relative_to(SOURCE).as_posix()
        topic = next((t for prefix, t in TOPICS.items() if place.startswith(prefix)), "Other")
        for node in ast.walk(tree):
            call = node.exc if isinstance(node, ast.Raise) else None
            name = (
                call.func.id
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
                else ""
            )
            if name not in ERRORS or not call.args:
                continue
            said = call.args[0]
            made = (
                said.func.id
                if isinstance(said, ast.Call) and isinstance(said.func, ast.Name)
                else ""
            )
            for text in [said] if is_text(said) else returned[made]:
                yield topic, ERRORS[name], template(text)


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def template(text: ast.expr) -> str:
    """A sentence with an ellipsis for every value."""
    if isinstance(text, ast.Constant):
        return text.value
    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in text.values)
    return " ".join("".join(parts).replace("……", "…").split())


def page() -> str:
    found = defaultdict(dict)
    for topic, code, text in sentences():
        if text.strip("… .,:"):  # else another's sentence is passed on
            found[topic][text] = code
    lines = []
    for topic in dict.fromkeys(TOPICS.values()):
        if found[topic]:
            lines.append(f"\n### {topic}\n")
        for text in sorted(found[topic]):
            code = found[topic][text]
            said = text.replace("<", "&lt;").replace("*", "\\*").replace("|", "\\|")
            lines.append(f"- {said}" + f" (exit code {code})" * (code != 2))
    if found["Other"]:
        raise SystemExit(f"No topic in TOPICS has {', '.join(found['Other'])}.")
    return filled(PAGE, "\n".join(lines).strip())


if __name__ == "__main__":
    PAGE.write_text(page())
