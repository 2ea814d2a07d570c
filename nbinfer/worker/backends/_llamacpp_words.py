"""What both bindings of llama.cpp say in the same words."""

from __future__ import annotations

NO_PROJECTOR = (
    "this model was loaded without a projector, so it reads no images: put its mmproj*.gguf "
    'beside it, or give model_kwargs={"mmproj": PATH}'
)
BAD_GRAMMAR = (
    "the grammar is refused by llama.cpp: it takes GBNF that begins with a rule called root, "
    'such as root ::= "yes" | "no"'
)


def unused(options):
    """The warning for options that only an accelerator has a use for, or ``None``."""
    for name in ("n_gpu_layers", "split_mode", "tensor_split"):
        if options.get(name):
            return (
                f"{name}={options[name]!r}, but this build of llama.cpp sees no accelerator: "
                "everything runs on the CPU"
            )
    return None
