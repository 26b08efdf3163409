#!/usr/bin/env bash
# Runs the tests that the versions of libraries can change, in one of tools/environment.sh's
# environments, which is made first where it is not there. About five minutes on two cores.
#
#   tools/test_environment.sh oldest|newest|card
#
# All tests run in .venv (make test). Left out here is what takes long and looks at our own work
# alone: most of the distributed tests, the planner's, and most cases of the kernels, of which some of
# every kind are interpreted, and all are compiled for other cards. In card, which has what a GPU
# machine has and the wheels that are carried there, the whole GPU report is rehearsed.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?"which environment? oldest, newest or card"}
tools/environment.sh "$name"
python=$PWD/.venv-$name/bin/python
export PATH=$PWD/.venv-$name/bin:$PATH PYTHONPATH=$PWD
"$python" - <<'VERSIONS'
import sys
from importlib.metadata import version

names = ("torch", "triton", "transformers", "numpy", "peft", "deepspeed")
print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in names))
VERSIONS

if [[ $name == card ]]; then
    exec "$python" tools/gpu_report.py --rehearse --out ".venv-$name/report"
fi
pytest=("$python" -m pytest -p no:cacheprovider)
"${pytest[@]}" tests/test_requirements.py tests/test_lazy_imports.py \
    tests/model tests/data tests/training tests/export tests/pretrained tests/test_tokenization.py \
    tests/compatibility \
    tests/kernels/test_{attention,backends,elementwise,libraries}.py \
    "tests/distributed/test_resume.py::test_bf16_resumes_bitwise[zero2]"
"${pytest[@]}" tests/planning/test_plan.py -k "advised or would_fit"
TRITON_INTERPRET=1 "${pytest[@]}" tests/kernels/interpreted_elementwise.py \
    -k "operators or frozen or leading or rows or checkpointing"
TRITON_INTERPRET=1 "${pytest[@]}" tests/kernels/interpreted_attention.py \
    -k "forty or further or stay_finite or nothing or fused_projection"
# The cards that the tests of .venv do not compile for, and with the oldest Triton all that it knows.
case $name in
    oldest) architectures=(80 90 100) ;;
    *) architectures=(80 100) ;;
esac
"$python" tools/compile_gate.py --architecture "${architectures[@]}" | tail -n 1
