"""Thirty kills of a small study, at random moments (make soak)."""

import random
import time

import pytest
from kills import KINDS, Victim, outcomes
from pipeline import copy_repository, paths
from test_trouble import write_study

pytestmark = pytest.mark.soak

KILLS = 30
CONFIG = "workflow/studies/soak.yaml"
LONGEST = 20  # seconds between two kills


def test_results_after_thirty_kills_are_those_of_a_quiet_run(tmp_path, capsys):
    copy_repository(tmp_path)
    methods = ["full", "h2o", "streaming-llm", "head-aware"]
    tasks = {"niah_single": methods, "perplexity": methods[:2]}
    experiments = [{"tasks": [task], "methods": names} for task, names in tasks.items()]
    write_study(tmp_path, CONFIG, contexts=8, experiments=experiments)
    made = paths(tmp_path, CONFIG)
    targets = [path for name, path in made.items() if name.startswith("results/cells/")]
    seed = time.time_ns()
    victim = Victim(tmp_path, CONFIG, targets, random.Random(seed))
    victim.finish()
    victim.expected = outcomes(victim.cells)
    victim.wipe()
    kinds = [KINDS[n % len(KINDS)] for n in range(KILLS)]
    victim.random.shuffle(kinds)
    started = time.monotonic()
    try:
        victim.disturb(kinds, LONGEST)
        victim.finish()
    finally:
        victim.stop()
    with capsys.disabled():
        print(
            f"\n{dict(victim.kills)} in {time.monotonic() - started:.0f} s (seed {seed}), the study"
            f" came to its end {victim.rounds + 1} times; contexts of unfinished cells found after"
            f" a kill: {victim.kept}; lost: {victim.lost}"
        )
    assert victim.lost == 0
    assert outcomes(victim.cells) == victim.expected
