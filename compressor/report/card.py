"""What a run says about itself: compression.json, the model card, the final table."""

from pathlib import Path

from compressor.config.amounts import in_runs
from compressor.config.hub_names import called
from compressor.config.json_files import object_in
from compressor.config.layouts import NAS, PER_LAYER
from compressor.config.target import WITHOUT_WIDTHS
from compressor.model.families import FAMILIES, Family, nas
from compressor.model.families.wrappers import wrapper_of
from compressor.model.per_layer import code_of, has_uniform, needs_code
from compressor.report.drawing import PICTURE
from compressor.report.metadata import head
from compressor.report.result import Result
from compressor.text.tokens import describe


def write_card(folder: Path, result: Result, record: dict) -> None:
    """The model card: what this is, what it cost, how it was made."""
    text = f"""{head(folder, Path(result.source), ["pruned"])}
# {called(result.source)}, compressed to {result.keep_reached:.1%}

{result.parameters_after:,} of {result.parameters_before:,} parameters stay{experts(result, record)}
of the type `{result.container}`{how_it_loads(FAMILIES[result.container], result.layout, folder)}

{quality(result, record)}

{how_made(folder, result, record)}"""
    (folder / "README.md").write_text(text, encoding="utf-8")


def experts(result: Result, record: dict) -> str:
    """The end of a sentence that says what stays of a mixture, and what the result is."""
    plan = record["plan"]
    if not FAMILIES[result.container].experts:
        return ". A dense checkpoint"
    left, whole = len(plan["blocks"][0]["ffn"]), plan["about"]["units"][0]["ffn"]
    if result.granularity == "channel":
        return f", {left / whole:.0%} of the channels of every expert. A checkpoint"
    return f", in every block {left} of {whole} experts, as many a token as before. A checkpoint"


def quality(result: Result, record: dict) -> str:
    """What the compression cost, measured."""
    before, after = result.perplexity_before, result.perplexity_after
    if after is None:
        return "No perplexity was measured (`--evaluation none`)."
    kl, share = result.kl, result.agreement
    return (
        f"Perplexity {before:.3f} before, {after:.3f} after, on text that nothing was fitted to or "
        f"chosen by: {describe(record['evaluation'])}. The next token's distribution is {kl:.3f} nats "
        f"from the source's (KL divergence), and {share:.1%} of the tokens have the same likeliest one."
    )


def how_made(folder: Path, result: Result, record: dict) -> str:
    """How units were chosen, how what is left was repaired and trained, and the picture."""
    picture = ""
    if (folder / PICTURE).exists():
        picture = f"\n![Block by block: units kept, their scores and the cut]({PICTURE})\n"
    trained = record.get("recovery")
    training = "no recovery followed"
    if trained and trained["kept"]:
        settings, data = trained["settings"], trained["data"]
        rank = "" if settings["method"].startswith("full") else f"rank {settings['rank']}, "
        training = (
            f"then recovered by {settings['steps']} steps of {settings['method']} ({rank}"
            f"{settings['batch']} sequences a step) on {data['source']}"
        )
        if result.perplexity_pruned is not None:
            training += f"; before this training the perplexity was {result.perplexity_pruned:.3f}"
    about = record["plan"]["about"]
    went = [which_blocks(about), which_channels(about), which_units(about)]
    chosen = "; ".join(filter(None, went))
    return f"""{chosen}; {how_repaired(record.get("repair"))}; {training}.
`compression.json` holds the plan and all settings.
{picture}"""


def which_units(about: dict) -> str:
    """How units were chosen; nothing where whole blocks alone went, or channels of the stream."""
    if (about.get("asked") or {}).get("kind") in WITHOUT_WIDTHS:
        return ""
    scored = about["scores"]
    units = f"Units were chosen by `{scored['method']}` ({scored['mode']}), seed {scored['seed']}"
    return f"{units}, widths by `{about['allocate']}`"


def which_blocks(about: dict) -> str:
    """Which whole blocks went, and what became of what they did; nothing where none did."""
    dropped, depth = about.get("dropped"), about.get("depth") or {}
    if not dropped:
        return ""
    many = f"{len(dropped)} of {len(dropped) + len(about['units'])} blocks"
    folded = [run["into"] for run in depth.get("folded", []) if run["lambda"] is not None]
    kept = f"what they did is folded into the blocks {in_runs(folded)}" if folded else "unfolded"
    return f"{many} were dropped ({in_runs(dropped)}, counted from 0), {kept}"


def which_channels(about: dict) -> str:
    """What stays of the residual stream; nothing where all of it does."""
    if (hidden := about.get("hidden")) is None:
        return ""
    return (
        f"{len(hidden['channels'])} of {hidden['of']} channels of the residual stream stay, the same in "
        f"the whole model: those with the most energy behind the norms ({hidden['energy']:.1%} of it)"
    )


def how_repaired(repair: dict | None) -> str:
    """What of the blocks that stay was changed, and on which text."""
    if repair is None:
        return "what stays is unchanged"
    trained = ""
    if epochs := repair.get("epochs"):
        times = "once" if epochs == 1 else f"{epochs} times"
        trained = f"; then every block was trained toward the source's, {times} over that text"
    text = describe(repair["calibration"])
    return f"what stays was refitted (`--repair {repair['kind']}`) on {text}{trained}"


def how_it_loads(family: Family, layout: str, folder: Path) -> str:
    """The end of a sentence, and the lines of Python that load a result."""
    if wrapper := wrapper_of(object_in(folder / "config.json")):
        return f""" inside of a `{wrapper.model_type}`, whose
vision tower and projector are those of the source; it loads with plain `transformers`:

    from transformers import AutoModelForImageTextToText, AutoProcessor
    model = AutoModelForImageTextToText.from_pretrained("this folder", dtype="auto")"""
    imports = "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    call = '    model = AutoModelForCausalLM.from_pretrained("this folder", dtype="auto"'
    if layout == NAS:
        return f""" whose blocks have FFN widths of their own (`{nas.MODEL_TYPE}`). vLLM has a
class of such models, and `transformers` builds them by the code in this folder; both run that only where
they are told to:

    vllm serve "this folder" --trust-remote-code

{imports}{call}, trust_remote_code=True)

Where `compressor` is installed, `vllm serve` needs no such flag."""
    if not needs_code(family, layout):
        return f"; it loads with plain `transformers`:\n\n{imports}{call})"
    first, *others = [f"`{file.name}`" for file in code_of(family)]
    files = f"{first} (with {', '.join(others)})" if others else first
    what = "of which `transformers` has no class."
    closing = ""
    if layout == PER_LAYER:
        what = "whose blocks have widths of their own."
        closing = """, and what knows one width for all blocks (vLLM's
classes, llama.cpp, 4-bit kernels) does not load it"""
    if layout == PER_LAYER and has_uniform(family):
        closing += ". A `uniform` result loads everywhere"
    return f""" {what} {files}, which is
in this folder, builds them; `transformers` runs it only where it is told to:

{imports}{call}, trust_remote_code=True)

Without `trust_remote_code` loading ends with an error{closing}."""
