"""Structured pruning as a modifier of llm-compressor: what it then quantises is the smaller model.

    recipe = [StructuredPruningModifier(keep=0.7), GPTQModifier(targets="Linear", scheme="W4A16")]
    oneshot(model=model, recipe=recipe, dataset=dataset)

The cut is made when the modifier is initialised, before those after it see the model, on the calibration
data that `oneshot` was given. The model stays the same object, with new modules and a new config in it,
so that llm-compressor saves it as it saves any other. `pip install llmcompressor`.
"""

from typing import Any

from torch import nn

from compressor.adapters.batches import rows
from compressor.config.repair import DEFAULT_REPAIR
from compressor.errors import InputError
from compressor.front.stages import CUT, cut, plan, repair, score

try:
    from llmcompressor.core import State
    from llmcompressor.modifiers import Modifier
except ImportError as error:
    raise ImportError(
        f"llm-compressor cannot be imported ({error}); install it: pip install llmcompressor"
    ) from None

SIZES = ("keep", "keep_blocks", "target")


class StructuredPruningModifier(Modifier):
    """Whole FFN channels and KV groups go, the same numbers in every block, and what stays is repaired.

    keep: share of all parameters that stays; or keep_blocks: of the weights in the blocks; or target:
    `5.4B` or `11GB`. method: METHOD or METHOD:MODE of the scores, by default llm-bip. repair: `refine`,
    `ridge` or `none`. allocate: how much goes of attention and of FFNs: `uniform`, or what measures it:
    `exact`, `measured`, `besa`. align: what FFN widths are multiples of, such as the group size of the
    weights' scales; by default the widest usual multiple that comes near to the target. device, dtype:
    to compute in.

    InputError, before any work, after a modifier that quantises, where `oneshot` got no dataset, and for
    a model that `compressor.score` refuses; that is also one whose modules llm-compressor has replaced
    (norms of Gemma, experts): cut its folder by `compressor.compress`, and quantise what that makes.
    """

    keep: float | None = None
    keep_blocks: float | None = None
    target: str | None = None
    method: str | None = None
    repair: str = DEFAULT_REPAIR
    allocate: str = "uniform"
    align: int | None = None
    device: str | None = None
    dtype: str = "auto"

    def on_initialize(self, state: State, **_) -> bool:
        model = state.model
        check_first(model)
        if state.data.calib is None:
            raise InputError(
                "StructuredPruningModifier looks at a text, and oneshot has none; give it a dataset."
            )
        ids = rows(state.data.calib)
        machine: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        # The same class has to hold the result, as the module stays the one that it is.
        container = model.config.model_type
        sizes = {name: value for name in SIZES if (value := getattr(self, name)) is not None}
        options: dict[str, Any] = sizes | {"allocate": self.allocate, "align": self.align}
        if self.allocate != "uniform":
            options |= {"text": ids, "repair": self.repair, **machine}
        scores = score(model, ids, self.method, **machine)
        kept = plan(scores, container=container, **options)
        small = cut(model, kept, container=container)
        take(model, repair(small, model, ids, self.repair, **machine))
        return True


def check_first(model: nn.Module) -> None:
    """Refuse a model that is to be quantised already: its scales would not be cut along."""
    for name, module in model.named_modules():
        if hasattr(module, "quantization_scheme"):
            raise InputError(
                f"{name} is to be quantised already; put StructuredPruningModifier before the modifiers "
                "that do that."
            )


def take(model: Any, small: Any) -> None:
    """Make `model` what `small` of the same class is; it stays the object that others hold."""
    # Else the config file of the model that it was would be saved again.
    small.config.name_or_path = ""
    for name, child in small.named_children():
        setattr(model, name, child)
    model.config = small.config
    setattr(model, CUT, getattr(small, CUT))
