#!/usr/bin/env bash
# Collects the wheels that a GPU machine without a network lacks, to be carried there.
#
#   tools/gpu_wheels.sh [DIRECTORY]          (default: .wheels, which git ignores)
#
# The machine is taken to have Python 3.12 with torch 2.11, triton 3.6, transformers 5 and what these
# bring (numpy, safetensors, tokenizers, sentencepiece, pillow, pyyaml, tqdm, psutil). There:
#
#   python3 -m pip install --no-index --no-deps --no-compile --target SITE .wheels/*.whl
#   PYTHONPATH=SITE python3 tools/gpu_report.py --out OUT
#
# Without it train, evaluate and export run on images; videos (av), TensorBoard's files and object
# stores (streaming's cloud libraries) want more.
set -euo pipefail

PYTHON_VERSION=${PYTHON_VERSION:-3.12}
LIMIT_MIB=50
# Wheels as the registry has them.
WHEELS=(
    peft==0.21.2
    omegaconf==2.4.0
    pydantic==2.14.4
    pydantic-core==2.50.5
    annotated-types==0.8.0
    typing-inspection==0.4.5
    simplejpeg==1.9.0
    xxhash==4.1.0
    zstandard==0.25.0
    mosaicml-streaming==0.13.0
    zstd==1.5.6.1 # streaming imports it; 1.5.7 was withdrawn, for it is not safe with threads
    # What DeepSpeed and peft import, where torch's and transformers' own needs are all there is.
    accelerate==1.15.0
    einops==0.8.2
    msgpack==1.2.4
    ninja==1.13.2
    psutil==7.2.2
    py-cpuinfo==9.0.0
)
# Sources alone; nothing of them is compiled (DeepSpeed compiles its operators where they are used).
SOURCES=(
    deepspeed==0.19.8
    hjson==3.1.0
)
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)

directory=${1:-$(dirname "$0")/../.wheels}
python=${PYTHON:-python3}
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

pip=("$python" -m pip --disable-pip-version-check)
"${pip[@]}" download --quiet --no-deps --only-binary=:all: --dest "$fresh" \
    --python-version "$PYTHON_VERSION" --implementation cp \
    "${PLATFORMS[@]/#/--platform=}" "${WHEELS[@]}"
DS_BUILD_OPS=0 "${pip[@]}" wheel --quiet --no-deps --wheel-dir "$fresh" "${SOURCES[@]}"

for wheel in "$fresh"/*.whl; do
    case $wheel in
        *-none-any.whl | *-none-manylinux*x86_64.whl | *-abi3-manylinux*x86_64.whl) ;;
        *-"cp${PYTHON_VERSION/./}"-manylinux*x86_64.whl) ;;
        *)
            echo "gpu_wheels: ${wheel##*/} would not run there: it is built for this machine" >&2
            exit 1
            ;;
    esac
done
kib=$(du -sk "$fresh" | cut -f1)
if ((kib > LIMIT_MIB * 1024)); then
    echo "gpu_wheels: $((kib / 1024)) MiB of wheels, and $LIMIT_MIB can be carried" >&2
    exit 1
fi
mkdir -p "$directory"
rm -f "$directory"/*.whl
mv "$fresh"/*.whl "$directory"
(cd "$directory" && du -k ./*.whl | sort -rn | sed 's/^/  KiB /')
count=$(find "$directory" -name '*.whl' | wc -l)
echo "$count wheels, $((kib / 1024)) MiB of $LIMIT_MIB, in $directory"
