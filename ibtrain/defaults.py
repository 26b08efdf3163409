"""What holds where nobody says otherwise; for the command line, its help and the library alike."""

SHORT_SIDE = 288
"""Pixels of the shorter side, to which larger images are reduced when shards are made."""
FRAMES = 4
"""Of a video; the number that transformers' InstructBlipVideo processor takes."""
QUARANTINE_BUDGET = 0.01
"""The share of bad annotations above which a conversion fails."""
PREVIEW_SAMPLES = 6
"""Of each dataset on the page of a mixture."""
REPORT_SAMPLES = 3
"""Of each dataset on the page of a run."""

# Of the released models' `generate` (LAVIS `blip2_vicuna_instruct.py`, `blip2_t5_instruct.py`), the
# same for both families.
ASK_BEAMS = 5
ASK_NEW_TOKENS = 256
ASK_REPETITION_PENALTY = 1.5

SHARD_GIGABYTES = 5.0
"""The largest file of weights in an export for transformers."""
