"""Writes tests/pretrained/written/RELEASE with the installed release of transformers (see the
README there): what it saves of tiny models and a processor, and what its own model answers.
"""

import ibtrain.torchvision_mend  # isort: skip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from ibtrain.export.huggingface import export_huggingface
from tests.tiny import (
    IMAGE_SIZE,
    QUERY_TOKENS,
    tiny_config,
    tiny_model,
    transformers_twin,
    vocabularies,
    write_tiny_processor,
)

assert ibtrain.torchvision_mend
WRITTEN = Path(__file__).with_name("written")
TEXTS = (
    "What color is the circle?",
    "  two spaces, naïve café, 漢字 and <image> in it\nand a line",
    "What's </s> written on the 2nd sign?",
)
SIZES = {
    "vision_width": 8,
    "vision_layers": 1,
    "qformer_width": 8,
    "qformer_layers": 2,
    "language_width": 8,
    "language_heads": 2,
    "language_layers": 1,
}
LLAMA: dict[str, Any] = {"language_key_heads": 1}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (LLAMA, {"rope_theta": 500000.0}),
    "llama-tied": (LLAMA, {"tie_word_embeddings": True}),
    "t5": ({"language": "t5"}, {}),
    "t5-tied": ({"language": "t5"}, {"tie_word_embeddings": True}),
}
"""Sizes of each model, and fields of its language model."""


def pixels() -> torch.Tensor:
    """A picture that no release resizes: [1, 3, IMAGE_SIZE, IMAGE_SIZE]."""
    return torch.sin(torch.arange(3.0 * IMAGE_SIZE**2)).view(1, 3, IMAGE_SIZE, IMAGE_SIZE)


def with_text(config: Any, fields: dict[str, Any]) -> Any:
    """A configuration with other fields of the language model, in the installed release's words."""
    text = config.text_config.to_dict()
    if "rope_theta" in fields and "rope_parameters" in text:
        rope = text["rope_parameters"] | {"rope_theta": fields["rope_theta"]}
        fields = {"rope_parameters": rope}
    kind = type(config.text_config)
    config.text_config = kind(**(text | fields))
    return config


def tokens(processor: Any, text: str) -> dict[str, list[int]]:
    """Both tokenizers' ids of an instruction."""
    inputs = processor(text=text, return_tensors="pt")
    ids = {"language": inputs["input_ids"], "qformer": inputs["qformer_input_ids"]}
    return {name: found[0].tolist() for name, found in ids.items()}


@torch.inference_mode()
def their_logits(model: Any, processor: Any, text: str) -> list[float]:
    """transformers' logits of the first answer token."""
    ids = tokens(processor, text)
    images = [model.config.image_token_index] * QUERY_TOKENS
    inputs = {
        "input_ids": torch.tensor([images + ids["language"]]),
        "qformer_input_ids": torch.tensor([ids["qformer"]]),
        "pixel_values": pixels(),
    }
    if model.config.text_config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(1, 1, dtype=torch.long)
    logits: list[float] = model.eval()(**inputs).logits[0, -1].tolist()
    return logits


def main() -> None:
    """Writes the directory of the installed release."""
    out = WRITTEN / transformers.__version__
    if out.exists():
        raise SystemExit(f"{out} is there; what a release wrote is not written again")
    expected: dict[str, Any] = {"tokens": {}, "logits": {}}
    with tempfile.TemporaryDirectory() as scratch:
        made = write_tiny_processor(Path(scratch) / "processor")
        processor = InstructBlipProcessor.from_pretrained(made)
        processor.save_pretrained(out / "processor")
        expected["tokens"] = {text: tokens(processor, text) for text in TEXTS}
        for name, (sizes, fields) in MODELS.items():
            config = tiny_config(**vocabularies(made), **(SIZES | sizes))
            config.image_token_index = config.text_config.vocab_size - 1
            twin = transformers_twin(tiny_model(with_text(config, fields)))
            twin.save_pretrained(out / name)
            opened = InstructBlipForConditionalGeneration.from_pretrained(out / name)
            expected["logits"][name] = their_logits(opened, processor, TEXTS[0])
        whole = Path(scratch) / "whole"
        shutil.copytree(out / "processor", whole)
        shutil.copytree(out / "llama", whole, dirs_exist_ok=True)
        export_huggingface(whole, out / "export")
        report = out / "export" / "export_report.json"
        report.write_text(report.read_text().replace(scratch, "/bases"))
    (out / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
