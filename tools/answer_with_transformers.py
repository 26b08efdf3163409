"""Opens an export with transformers' own classes and checks that it gives the run's answers.

    python tools/answer_with_transformers.py EXPORT --predictions predictions.jsonl --data SHARDS

Nothing of ibtrain's model is used: InstructBlipForConditionalGeneration and InstructBlipProcessor
answer each question greedily, and every answer is compared with the one ibtrain wrote down.
Exit code 0 when all are the same, 1 when any differs, 2 when something is missing.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import ibtrain.torchvision_mend  # isort: skip
import torch
from PIL import Image
from transformers import InstructBlipForConditionalGeneration, InstructBlipProcessor

from ibtrain.data.shards.records import read_records

assert ibtrain.torchvision_mend


def main() -> int:
    """Answers every question of the predictions again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, metavar="EXPORT")
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the benchmark's shards")
    parser.add_argument("--limit", type=int, default=100, help="how many questions")
    parser.add_argument("--max-new-tokens", type=int, default=10)
    arguments = parser.parse_args()
    for path in (arguments.export, arguments.predictions, arguments.data):
        if not path.exists():
            print(f"{path} is not there", file=sys.stderr)
            return 2
    answers = {
        row["id"]: row["prediction"]
        for row in map(json.loads, arguments.predictions.read_text().splitlines())
        if row["benchmark"] == arguments.data.name
    }
    processor = InstructBlipProcessor.from_pretrained(arguments.export, local_files_only=True)
    model = InstructBlipForConditionalGeneration.from_pretrained(
        arguments.export, local_files_only=True, dtype=torch.float32
    ).eval()
    asked, differing = 0, []
    for record in read_records(arguments.data):
        if record.id not in answers:
            continue
        image = Image.open(io.BytesIO(record.images[0])).convert("RGB")
        inputs = processor(images=image, text=record.instructions[0], return_tensors="pt")
        generated = model.generate(
            **inputs,
            num_beams=1,
            do_sample=False,
            min_new_tokens=1,
            max_new_tokens=arguments.max_new_tokens,
        )
        new = (
            generated[0, inputs["input_ids"].shape[1] :]
            if _has_prompt(generated, inputs)
            else (generated[0])
        )
        answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        if answer != answers[record.id]:
            differing.append((record.id, record.instructions[0], answers[record.id], answer))
        asked += 1
        if asked == arguments.limit:
            break
    for identity, question, ours, theirs in differing[:10]:
        print(f"{identity}: {question!r}: ibtrain {ours!r}, transformers {theirs!r}")
    print(
        f"transformers gives the same answer to {asked - len(differing)} of {asked} questions "
        f"({arguments.export})"
    )
    return 0 if asked and not differing else 1


def _has_prompt(generated: torch.Tensor, inputs: dict[str, torch.Tensor]) -> bool:
    """Whether the returned ids begin with the prompt (as the releases differ in)."""
    prompt = inputs["input_ids"][0]
    length = prompt.shape[0]
    return generated.shape[1] >= length and bool(torch.equal(generated[0, :length], prompt))


if __name__ == "__main__":
    sys.exit(main())
