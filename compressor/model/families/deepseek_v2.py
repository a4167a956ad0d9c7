"""DeepSeek V2 and V2-Lite: latent attention, and experts by their softmax, of groups or of all."""

from collections.abc import Mapping
from dataclasses import replace

from compressor.model.families import grouped, latent
from compressor.model.families.grouped import GROUPED
from compressor.model.families.kinds import together
from compressor.model.families.table import Family

METHOD, OF_ALL, OF_GROUPS = "topk_method", "greedy", "group_limited_greedy"


def as_computed(config: Mapping) -> Mapping:
    """A router of all experts looks at no groups, whatever the config says of them."""
    of_groups = config.get(METHOD) == OF_GROUPS
    return config if of_groups else {**config, grouped.GROUPS: 1, grouped.CHOSEN: 1}


def groups(config: Mapping) -> tuple[int, int]:
    return grouped.groups(as_computed(config))


def unlike(config: Mapping) -> str | None:
    if (method := config.get(METHOD)) not in (OF_ALL, OF_GROUPS):
        return f"its {METHOD} is {method!r}, and {OF_ALL} and {OF_GROUPS} are computed"
    return grouped.unlike(groups)(as_computed(config))


FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    attention=latent.OUTPUT,
    latent=latent.numbers,
    constants={METHOD: OF_ALL, grouped.COUNT: 64},
    **GROUPED
    | {
        "experts": replace(GROUPED["experts"], groups=groups),
        "kind": together(latent.kind, grouped.kind),
        "unlike": unlike,
    },
)
