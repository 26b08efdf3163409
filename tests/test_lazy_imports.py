"""What is imported only where it is used: a run over images needs none of it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNUSED = ("av", "tensorboard", "matplotlib", "streaming", "boto3", "azure", "google.cloud", "oci")

# One process for all verbs: what takes long is importing torch, transformers and DeepSpeed.
SCRIPT = r'''
import sys
from pathlib import Path

UNUSED = sys.argv[2].split(",")

class Without:
    """A finder that does not find what is not installed."""
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if any(name == one or name.startswith(one + ".") for one in UNUSED):
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
root = sys.argv[1]

from ibtrain.cli import main

def verb(*words):
    code = main([*map(str, words)])
    assert code == 0, (words, code)

verb("data", "toy", f"{root}/raw", "--train-images", 12, "--test-images", 4, "--no-videos")
for dataset, split, folder in (("vqav2", "train", "shards"), ("gqa", "testdev", "benchmarks")):
    raw = ("--raw", f"{root}/raw/{dataset}", "--out", f"{root}/{folder}/{dataset}")
    verb("data", "prepare", dataset, "--split", split, *raw)
verb("data", "verify", f"{root}/shards/vqav2")
mixture = "data.mixture=[{dataset: vqav2, path: " + root + "/shards/vqav2}]"
small = ["training.global_batch=4", "training.micro_batch=2", "model.train_parts.language=lora"]
verb("train", "toy-base", f"root={root}", mixture, "training.steps=2", "sharding=zero2", *small)
run = f"{root}/runs/toy-base"
verb("export", run, "--to", "hf", "--out", f"{root}/export")
picture = next(Path(root, "raw/gqa").rglob("*.jpg"))
verb("ask", f"{root}/export", "--image", picture, "--prompt", "What is it?", "--max-new-tokens", 3)
evaluation = ("--data", f"{root}/benchmarks", "--out", f"{root}/evaluation", "--limit", 3)
verb("evaluate", f"{root}/export", *evaluation)
print("ALL RAN")
'''


def test_images_are_trained_on_evaluated_and_exported_without_what_images_do_not_need(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), ",".join(UNUSED)],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("ALL RAN\n"), done.stdout + done.stderr
    assert "no file for TensorBoard is written" in done.stderr
    assert list((tmp_path / "evaluation").glob("*.png"))
    assert not list((tmp_path / "runs/toy-base").glob("events.*"))


def test_a_video_without_pyav_is_refused_with_the_remedy(tmp_path):
    script = (
        "import sys; sys.modules['av'] = None\n"
        "from pathlib import Path; from ibtrain.data.video import frames\n"
        "frames(Path(sys.argv[1]))"
    )
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"not read")
    done = subprocess.run(
        [sys.executable, "-c", script, str(video)], cwd=ROOT, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: a video cannot be decoded") and "pip install av" in last
