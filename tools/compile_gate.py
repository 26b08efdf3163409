"""Compiles every kernel that can be launched for sm_80, sm_90 and sm_100, with no GPU, and reads
what became of it: registers, spills, shared memory, tensor-core instructions, asynchronous copies.

    python tools/compile_gate.py [--architecture 80 90 100] [--only WORDS] [--processes N] [--json]

Fails (exit code 1) where a kernel does not compile, spills more than its budget, multiplies without
tensor cores, has no asynchronous copy where it must, or needs more shared memory than a program may
have. Which kernels there are is said by the files that launch them (`Variant`). An architecture
that the assembler of this Triton does not know is left out, and that is said.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes that a program may have (CUDA programming guide, technical specifications)."""
ARCHITECTURES = tuple(SHARED_MEMORY)
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What became of a variant on an architecture."""

    name: str
    architecture: int
    registers: int = 0
    spilled_bytes: int = 0
    shared_bytes: int = 0
    tensor_core_instructions: int = 0
    asynchronous_copies: int = 0
    faults: tuple[str, ...] = ()


def main(arguments: list[str] | None = None) -> int:
    """Compiles, reports, and returns the exit code."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    # Read when a kernel is defined: an interpreted one cannot be compiled.
    os.environ.pop("TRITON_INTERPRET", None)
    names = [name for name in variants_by_name() if parsed.only in name]
    if not names:
        parser.error(f"no kernel's name has --only {parsed.only!r} in it")
    unknown = {each: why_not(each) for each in parsed.architecture if why_not(each)}
    for reason in unknown.values():
        print(reason, file=sys.stderr)
    architectures = [each for each in parsed.architecture if each not in unknown]
    if not architectures:
        parser.error("no architecture is left to compile for")
    jobs = [(name, architecture) for name in names for architecture in architectures]
    with tempfile.TemporaryDirectory() as cache:
        # ptxas says what became of a kernel; one from the cache says nothing.
        os.environ |= {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(parsed.processes) as pool:
            results = list(pool.map(_compile_named, *zip(*jobs, strict=True), chunksize=8))
    failed = [result for result in results if result.faults]
    if parsed.json:
        print(json.dumps([dataclasses.asdict(result) for result in results]))
    else:
        for line in _table(results):
            print(line)
        print(f"{len(results)} compiled, {len(failed)} at fault")
    return 1 if failed else 0


def variants_by_name() -> dict[str, Any]:
    """Everything that the dispatch can launch."""
    from ibtrain.kernels.triton_attention_variants import attention_variants
    from ibtrain.kernels.triton_elementwise import elementwise_variants

    return {variant.name: variant for variant in attention_variants() + elementwise_variants()}


def why_not(architecture: int) -> str:
    """What keeps this Triton from compiling for `architecture`, in a sentence, or nothing."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    try:
        assembler = get_ptxas(architecture).path
        told = subprocess.run([assembler, "--help"], capture_output=True, text=True).stdout
    except (OSError, RuntimeError) as error:
        told = str(error)
    if f"'sm_{architecture}'" in told:
        return ""
    return f"sm_{architecture} is left out: the assembler of Triton {triton.__version__} lacks it"


def compile_variant(variant: Any, architecture: int) -> Compiled:
    """Compiles one variant ahead of time and checks it against what it must be."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    index = {name: place for place, name in enumerate(variant.kernel.arg_names)}
    source = ASTSource(
        fn=variant.kernel,
        signature={
            name: variant.signature.get(name, "constexpr") for name in variant.kernel.arg_names
        },
        constexprs={(index[name],): value for name, value in variant.constants.items()},
        attrs={(index[name],): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    told = io.StringIO()
    try:
        with contextlib.redirect_stdout(told):
            kernel = triton.compile(
                source, target=GPUTarget("cuda", architecture, 32), options=variant.options
            )
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is what is reported
        return Compiled(variant.name, architecture, faults=(f"does not compile: {error}",))
    registers, spilled = _registers(told.getvalue())
    text = kernel.asm["ptx"]
    compiled = Compiled(
        variant.name,
        architecture,
        registers,
        spilled,
        kernel.metadata.shared,
        text.count(TENSOR_CORES[architecture]),
        len(re.findall(r"cp\.async\.c[ag]", text)),
    )
    return dataclasses.replace(compiled, faults=tuple(_faults(variant, compiled)))


def _faults(variant: Any, compiled: Compiled) -> Iterator[str]:
    limit = SHARED_MEMORY[compiled.architecture]
    if compiled.spilled_bytes > variant.spill_budget:
        yield f"spills {compiled.spilled_bytes} bytes, {variant.spill_budget} allowed"
    if compiled.shared_bytes > limit:
        yield f"needs {compiled.shared_bytes} bytes of shared memory, there are {limit}"
    if variant.tensor_cores and not compiled.tensor_core_instructions:
        yield f"no {TENSOR_CORES[compiled.architecture]}: it multiplies without tensor cores"
    if variant.asynchronous_copies and not compiled.asynchronous_copies:
        yield "no cp.async: its loads are not pipelined"


def _registers(told: str) -> tuple[int, int]:
    """Registers of a thread and bytes spilled (stores and loads), from what ptxas says."""
    stores, loads = (
        int(found) for found in re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    )
    (registers,) = re.findall(r"Used (\d+) registers", told)
    return int(registers), stores + loads


def _compile_named(name: str, architecture: int) -> Compiled:
    return compile_variant(variants_by_name()[name], architecture)


def _table(results: list[Compiled]) -> Iterator[str]:
    yield f"{'kernel':64} {'sm':>3} {'regs':>5} {'spill':>6} {'shared':>7} {'mma':>4} {'copies':>6}"
    for each in results:
        yield (
            f"{each.name:64} {each.architecture:>3} {each.registers:>5} {each.spilled_bytes:>6} "
            f"{each.shared_bytes:>7} {each.tensor_core_instructions:>4} "
            f"{each.asynchronous_copies:>6}" + "".join(f"\n    {fault}" for fault in each.faults)
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--architecture", type=int, nargs="+", default=[80, 90], choices=[80, 90, 100]
    )
    parser.add_argument("--only", default="", help="kernels whose name holds these words")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
