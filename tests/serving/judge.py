"""`make serve`, last part: every folder in every engine, compared with transformers.

    python tests/serving/judge.py FOLDER ENGINES RESULTS

ENGINES is the interpreter that has them. RESULTS/serve.json is written; the exit code is 1 where an
engine loads what it should not or computes something else, or where `inspect` had said otherwise.
"""

import json
import statistics
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from folders import QUANTISED, SWAPPED, WITHIN
from in_server import tried

HERE = Path(__file__).parent
BY_DEFAULT = 1e-2  # of the log-probabilities' standard deviation, with llama.cpp's own settings
DISTINCT = 8  # tokens that the greedy texts have at least
VLLM, LLAMA_CPP = "vLLM, tensor parallel 1", "llama.cpp, by compressor export"
OLDER = "transformers, with the compressed-tensors of vLLM"
LIMIT = 300  # seconds


def difference(found: list[list[float]], known: list[list[float]]) -> float:
    """The largest of all log-probabilities, as a share of a prompt's standard deviation."""
    return max(
        max(abs(a - b) for a, b in zip(x, y, strict=True)) / statistics.pstdev(y)
        for x, y in zip(found, known, strict=True)
    )


def run(engines: Path, script: str, *paths: Path) -> dict:
    """What an engine found; an engine that dies is an error as well."""
    *_, result = paths
    result.unlink(missing_ok=True)
    log = result.with_suffix(".log")
    with log.open("w") as output:
        command = [str(engines), "-W", "ignore", str(HERE / script), *map(str, paths)]
        subprocess.run(command, stdout=output, stderr=output, timeout=LIMIT, check=False)
    if not result.exists():
        return {"error": f"it died; see {log}"}
    return json.loads(result.read_text())


def faults(found: dict, known: dict) -> Iterator[str]:
    """What an engine does otherwise than transformers."""
    if "error" in found:
        yield found["error"].splitlines()[0][:200]
        return
    for name, within in (("following", known["within"]), ("following_default", BY_DEFAULT)):
        if name in found and (off := difference(found[name], known["following"])) > within:
            yield f"log-probabilities differ by {off:.1e} of their standard deviation ({name})"
    # No two programs continue a text alike where they round.
    if known["within"] <= WITHIN and found["greedy"] != known["greedy"]:
        yield "greedy tokens differ"
    if "ids" in found:
        composed = any("NFC" in note for note in known["notes"])
        for text, here, there in zip(known["texts"], found["ids"], known["ids"], strict=True):
            if here != there and not (composed and unicodedata.normalize("NFC", text) != text):
                yield f"{text!r} gets other ids"
                break
        if found["chat"] != known["chat"]:
            yield "the chat template makes another text"


def row(folder: Path, name: str, engines: Path, engine: str) -> dict:
    """What an engine makes of a folder."""
    known = json.loads((folder / f"{name}.json").read_text())
    said = engine == OLDER or known["loads"][engine]
    result = folder / f"{name}.{engine.split(',')[0].replace('.', '_').lower()}.json"
    if engine in (VLLM, OLDER):
        script = "in_vllm.py" if engine == VLLM else "in_transformers.py"
        found = run(engines, script, folder / f"{name}.json", folder / name, result)
    elif (folder / f"{name}.gguf").exists():
        found = run(
            engines, "in_llama_cpp.py", folder / f"{name}.json", folder / f"{name}.gguf", result
        )
    else:
        known_not = {"loads": False, "said": said, "because": known["no_gguf"], "within": None}
        return {"name": name, "engine": engine} | known_not
    wrong, distinct = [*faults(found, known)], len({t for each in known["greedy"] for t in each})
    if distinct < DISTINCT:
        wrong.append(f"the greedy texts have {distinct} tokens, too few to tell models apart")
    return {
        "name": name,
        "engine": engine,
        "version": found.get("version"),
        "loads": not wrong,
        "said": said,
        "because": wrong[0] if wrong else None,
        "within": None if "error" in found else difference(found["following"], known["following"]),
    }


def main(folder: Path, engines: Path, results: Path) -> None:
    names = sorted(file.stem for file in folder.glob("*.json") if file.stem.count(".") == 0)
    rows, amiss = [], []
    for name in names:
        quantised = [OLDER] if name.rpartition("-")[2] in QUANTISED else []
        for engine in (VLLM, LLAMA_CPP, *quantised):
            found = row(folder, name, engines, engine)
            rows.append(found)
            loads, expected = found["loads"], found["said"] and name != SWAPPED
            if expected is not None and loads is not expected:
                amiss.append(f"{name} in {engine}: {found['because'] or 'it loads'}")
            print(f"{name:<24} {engine:<24} {loads!s:<6} {found['because'] or found['within']}")
    for what, wrong in tried(folder / "llama-nas", engines):
        rows.append({"name": "llama-nas", "engine": f"vllm serve, {what}", "loads": wrong is None})
        amiss += [f"vllm serve, {what}: {wrong}"] if wrong else []
        print(f"{'llama-nas':<24} vllm serve, {what}: {wrong or 'as it should'}")
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"date": str(date.today()), "rows": rows}, indent=1) + "\n"
    (results / "serve.json").write_text(text)
    if amiss:
        raise SystemExit(f"{len(amiss)} otherwise than expected. {amiss[0]}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
