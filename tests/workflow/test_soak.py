"""Thirty kills of a small study, at random moments (make soak)."""

import random
import time

import pytest
from kills import KINDS, Victim, outcomes
from pipeline import copy_repository, snakemake
from test_trouble import write_study

pytestmark = pytest.mark.soak

KILLS = 30
CONFIG = "workflow/studies/soak.yaml"
LONGEST = 25  # seconds between two kills


def test_results_after_thirty_kills_are_those_of_a_quiet_run(tmp_path, capsys):
    copy_repository(tmp_path)
    experiments = [
        {"methods": ["full", "h2o", "streaming-llm", "head-aware"]},
        {"methods": ["full", "h2o"], "tasks": ["perplexity"]},
    ]
    write_study(tmp_path, CONFIG, contexts=8, experiments=experiments)
    quiet = snakemake(tmp_path, "--until", "cell", configs=(CONFIG,))
    assert quiet.returncode == 0, quiet.stdout

    seed = time.time_ns()
    victim = Victim(tmp_path, CONFIG, [], random.Random(seed))
    victim.expected = outcomes(victim.cells)
    assert len(victim.expected) == 6
    victim.targets = [str((victim.cells / name).relative_to(tmp_path)) for name in victim.expected]
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
