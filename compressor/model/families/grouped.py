"""Mixtures as DeepSeek makes them, as data: routers that choose groups of experts first.

The experts of a block lie in equal groups (`n_group`); a token is sent to the best experts of its best
groups (`topk_group`), so that a cut leaves as many experts in each group. The shared expert is so many
experts wide (`n_shared_experts`), and stays: a cut of the experts' channels has a width that divides its
own. The first blocks have one FFN, and keep it whole. Blocks behind the last predict further tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from compressor.model.families.experts import (
    DENSE,
    FIRST,
    LIKE_QWEN,
    MIXTURE,
    WHOLE_EXPERTS,
    is_dense,
    too_few,
)
from compressor.model.families.table import Slice

COUNT, PER_TOKEN = "n_routed_experts", "num_experts_per_tok"
GROUPS, CHOSEN = "n_group", "topk_group"
AHEAD = "num_nextn_predict_layers"
# What is added to an expert's score where it is chosen, and not where it is weighed. Classes keep it in
# float32.
BIAS = "e_score_correction_bias"
PAIR = 2  # experts of a group that such a router looks at, to choose the group


def groups(config: Mapping) -> tuple[int, int]:
    """Into how many groups experts are sorted, and how many of each have to stay."""
    count = config.get(GROUPS) or 1
    chosen = min(config.get(CHOSEN) or count, count)
    return count, -(-config[PER_TOKEN] // chosen)


def in_pairs(config: Mapping) -> tuple[int, int]:
    count, least = groups(config)
    return count, max(least, PAIR)


def unlike(grouped: Callable[[Mapping], tuple[int, int]]) -> Callable[[Mapping], str | None]:
    """Of a config, a sentence where it says what no such router does."""

    def why(config: Mapping) -> str | None:
        blocks, experts = config.get("num_hidden_layers") or 0, config.get(COUNT) or 0
        if (config.get(FIRST) or 0) >= blocks:
            return f"none of its blocks has experts ({FIRST})"
        if not config.get(PER_TOKEN):
            return f"its config does not say how many experts a token is routed to ({PER_TOKEN})"
        if few := too_few(config, COUNT):
            return few
        count, least = grouped(config)
        if experts % count:
            return f"its {experts} experts ({COUNT}) do not make {count} equal groups ({GROUPS})"
        if (config.get(CHOSEN) or count) > count:
            chosen = f"a token chooses {config[CHOSEN]} groups ({CHOSEN})"
            return f"{chosen}, and there are {count} ({GROUPS})"
        if experts // count < least:
            return (
                f"a group of experts has {experts // count} ({COUNT}, {GROUPS}), and its router asks "
                f"for {least} of each ({PER_TOKEN}, {CHOSEN})"
            )
        return None

    return why


def kind(config: Mapping, block: int) -> Mapping[str, Any]:
    return DENSE if is_dense(config, block) else {}


def beyond(config: Mapping) -> dict[str, Any]:
    """Blocks behind the last one, which predict further tokens."""
    blocks = config.get("num_hidden_layers") or 0
    names = (f"model.layers.{blocks + n}." for n in range(config.get(AHEAD) or 0))
    return {"foresees": (tuple(names), AHEAD)}


LIKE_DEEPSEEK = replace(
    LIKE_QWEN,
    shared="mlp.shared_experts.down_proj.weight",
    shared_count="n_shared_experts",
    counted=(COUNT,),
    groups=groups,
)
# The class of V2 chooses by what it weighs by; those after it add the bias, and look at pairs.
GROUPED: dict[str, Any] = MIXTURE | {
    "ffn_width_key": COUNT,
    "experts": LIKE_DEEPSEEK,
    "kind": kind,
    "form": beyond,
    "unlike": unlike(groups),
}
BIASED: dict[str, Any] = GROUPED | {
    "ffn": (*WHOLE_EXPERTS, Slice(f"mlp.gate.{BIAS}", 0, "c")),
    "experts": replace(LIKE_DEEPSEEK, groups=in_pairs, bias=BIAS),
    "unlike": unlike(in_pairs),
    "in_float32": (BIAS,),
}
