"""The rows of several nodes in one table; tests/slurm/ looks at the nodes of an allocation."""

import json
import subprocess
import sys

from ibtrain.check.nodes import merged
from ibtrain.check.verdicts import Finding

OK, MISS = Finding("GPUs", "OK", "8 x H100"), Finding("GPUs", "MISS", "none", "give it some")
DISK = [Finding("disk", "OK", f"{free} GiB free") for free in (10, 20)]


def test_alike_nodes_have_one_row():
    assert list(merged([("a", [OK, DISK[0]]), ("b", [OK, DISK[1]])])) == [OK, DISK[0]]
    assert list(merged([("a", [MISS]), ("b", [MISS])])) == [MISS]


def test_an_odd_node_has_a_row_of_its_own():
    rows = list(merged([("a", [OK]), ("b", [MISS]), ("c", [OK])]))
    assert rows == [
        Finding("GPUs (a, c)", "OK", "8 x H100"),
        Finding("GPUs (b)", "MISS", "none", "give it some"),
    ]


def test_a_row_that_one_node_lacks():
    assert list(merged([("a", [OK]), ("b", [])])) == [Finding("GPUs (a)", "OK", "8 x H100")]


def test_one_launched_process_has_the_table_of_nodes():
    command = [sys.executable, "-m", "ibtrain", "check", "--json"]
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    ended = subprocess.run(["env", *map("=".join, launched.items()), *command], capture_output=True)
    rows = {row["name"]: row for row in json.loads(ended.stdout)["findings"]}
    assert rows["nodes"]["found"].startswith("1, 1 ranks: ")
    assert rows["all-reduce"]["status"] == rows["code"]["status"] == "OK"
    assert rows["python"]["status"] == "OK"
