"""Starts groups of real training processes quickly: imports once, then forks a process per rank.

A start of `ibtrain train` is ten seconds of imports; forking from a process that has done them
leaves everything else as it is (own process group and store, gloo, kill -9 of the ranks).

Protocol, one JSON object a line. In: {"world": n, "call": "module:function", "arguments": [...],
"log": path} starts a group and answers {"pids": [...]}; {"wait": pids, "seconds": s} waits for a
group and answers {"codes": [...]} (negative: the signal that ended the rank); ranks that have not
ended after that time are killed.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback

import ibtrain.torchvision_mend  # isort: skip
import deepspeed
import streaming
import torch

import ibtrain.cli
import ibtrain.training.loop

torch.set_num_threads(1)
assert deepspeed and streaming and ibtrain.cli and ibtrain.training.loop


def run_cli(arguments: list[str]) -> int:
    """What a rank runs for `ibtrain ...`."""
    return ibtrain.cli.main(arguments)


def rank_process(order: dict, rank: int, port: int) -> None:
    """The life of one rank; never returns."""
    code = 70
    try:
        log = os.open(f"{order['log']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        world = order["world"]
        os.environ.update(
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_SIZE": str(world),  # what the deepspeed launcher sets
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            }
        )
        module, function = order["call"].split(":")
        code = getattr(importlib.import_module(module), function)(order["arguments"]) or 0
    except BaseException:  # noqa: BLE001  (a fork of the parent must not live on, whatever happens)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pids: list[int], seconds: float) -> list[int]:
    """Exit codes of a group."""
    end = time.monotonic() + seconds
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > end:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def main() -> None:
    """Serves orders until standard input ends."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(json.dumps({"codes": wait(order["wait"], order["seconds"])}), flush=True)
            continue
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pids: list[int] = []
        for rank in range(order["world"]):
            pid = os.fork()
            if pid == 0:
                rank_process(order, rank, port)
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)


if __name__ == "__main__":
    main()
