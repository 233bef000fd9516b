# The study: validated and expanded once, before any rule is read. Everything else that rules share
# is here too, so that the other files hold rules and nothing else.
import argparse
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

ROOT = Path(workflow.basedir)
# The code that runs is the code beside this Snakefile, whatever else is installed, and jobs run on
# the interpreter that runs Snakemake, whether or not its environment is activated.
sys.path.insert(0, str(ROOT / "src"))
for _variable, _first in (("PYTHONPATH", ROOT / "src"), ("PATH", Path(sys.executable).parent)):
    _rest = [os.environ[_variable]] if _variable in os.environ else []
    os.environ[_variable] = os.pathsep.join([str(_first), *_rest])

from kvbudget.study import provenance
from kvbudget.study import resources
from kvbudget.study import expand as studies
from kvbudget.errors import UserError
from kvbudget.sources import registry
from kvbudget.study.expand import canonical

try:
    with open(ROOT / "workflow/schemas/config.schema.yaml") as _schema:
        STUDY = studies.expand(studies.validate(config, yaml.safe_load(_schema)))
    CELLS = {cell.path: cell for cell in STUDY.cells}
    PLAN = hashlib.sha256(canonical(STUDY.plan()).encode()).hexdigest()
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = STUDY.directory
LOGS = f"{RESULTS}/logs"
HAYSTACK = STUDY.config["haystack"]
TEXT = f"results/text/{HAYSTACK}.txt"
LOCK = "workflow/models.lock.yaml"
# Nothing that computes may reach for the network.
OFFLINE = "HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1"
# Jobs read it from the environment: a result does not count as another because of it.
if STUDY.config["device"] != "auto":
    os.environ.update(KVBUDGET_DEVICE=STUDY.config["device"])
# On a machine with several GPUs each job has one to itself.
ON_ONE_GPU = "python -m kvbudget.run.lease"
HAS_TEX = shutil.which("latexmk") is not None
CONDA = str(ROOT / "environment.yml")

if workflow.is_main_process:
    # Snakemake knows the params of a record from .snakemake/, which does not come along with a
    # clone or an archive of results. The records themselves tell, and one that other code or
    # another spec has made is dated back, so that everything is newer and it is made again.
    for _path in STUDY.stale():
        with contextlib.suppress(PermissionError):
            os.utime(_path, (1, 1))


wildcard_constraints:
    model="|".join(map(re.escape, STUDY.config["models"])),
    haystack="|".join(map(re.escape, STUDY.config["haystacks"])),
    task="[a-z0-9][a-z0-9._-]*",
    method="[a-z0-9][a-z0-9._-]*",
    calibration="(/[a-z0-9][a-z0-9._-]*)?",
    length=r"\d+",
    budget=r"full|\d+|\d+(\.\d+)?p",


def cell_of(wildcards):
    """The cell of this study that a path stands for."""
    path = (
        f"{RESULTS}/cells/{wildcards.model}/{wildcards.task}/L{wildcards.length}/"
        f"{wildcards.method}/B{wildcards.budget}.json"
    )
    if path not in CELLS:
        raise WorkflowError(
            f"{path} is not a cell of study {STUDY.name!r}; add it to an experiment of its "
            "configuration, or name the configuration of the study that has it (--configfile)"
        )
    return CELLS[path]


def model_spec(wildcards):
    """What decides a model's files: its entry without what only the study and the paper use."""
    entry = STUDY.config["models"][wildcards.model]
    # A random model is made for its context.
    ignored = set(registry.DESCRIPTIVE) - ({"context"} if entry["source"] == "random" else set())
    return canonical({key: value for key, value in entry.items() if key not in ignored})


def haystack_spec(wildcards):
    """What decides a haystack's text."""
    entry = STUDY.config["haystacks"][wildcards.haystack]
    return canonical({key: value for key, value in entry.items() if key != "title"})


def locked_hashes(wildcards):
    """The lock's entry for one model, so that a change of another model's does not matter."""
    path = ROOT / LOCK
    locked = yaml.safe_load(path.read_text()) if path.exists() else None
    return canonical((locked or {}).get(wildcards.model))


def model_identity(wildcards):
    """What a result has to know about its model: where it comes from and the hash of each file."""
    identity = model_spec(wildcards) + locked_hashes(wildcards)
    return hashlib.sha256(identity.encode()).hexdigest()


def calibration_spec(wildcards):
    """What a calibration of this study is made from."""
    path = f"{RESULTS}/calibrations/{wildcards.model}{wildcards.calibration}.json"
    if path not in STUDY.calibrations:
        raise WorkflowError(f"{path} is not a calibration that study {STUDY.name!r} needs")
    return STUDY.calibrations[path]


def memory_mb(wildcards, input, attempt):
    """Memory of a job that runs a model; more at each attempt, as too little ends in a kill."""
    of_a_cell = "length" in wildcards.keys()
    spec = cell_of(wildcards).spec if of_a_cell else calibration_spec(wildcards)
    return attempt * resources.memory_mb(Path(input.verified), spec["dtype"], spec["length"])


def code(*modules):
    """Digest of the code behind `python -m MODULE`; see kvbudget.study.provenance."""
    try:
        return provenance.code_digest(modules)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def refuse_early():
    """Tell at the start, once, what would make every measurement of this run fail."""
    place = next(path for path in (Path(RESULTS), Path("results"), Path()) if path.exists())
    if not os.access(place, os.W_OK):
        raise WorkflowError(f"{place.resolve()} cannot be written; make it writable for you")
    jobs = list(workflow.dag.needrun_jobs())
    fetched = {job.wildcards.model for job in jobs if job.rule.name == "download_model"}
    measured = {job.wildcards.model for job in jobs if job.rule.name in ("calibration", "cell")}
    for model in sorted(measured - fetched):
        # Weights may be deleted once all is measured, so that their absence alone makes no job.
        if not Path(f"results/models/{model}/source.json").exists():
            raise WorkflowError(
                f"results/models/{model} is gone, and there is something left to measure; get the "
                f"model again: {again()} results/models/{model}/source.json"
            )
    # On a cluster, the jobs look for themselves.
    if measured and STUDY.config["device"] == "cuda" and workflow.local_exec:
        command = [sys.executable, "-m", "kvbudget.sources.device"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise WorkflowError(found.stderr.strip().splitlines()[-1])


def again():
    """The command that runs part of this study where this run does, completed by a file's name."""
    files = [os.path.relpath(path) for path in workflow.overwrite_configfiles]
    place = ["--workflow-profile", profile] if (profile := cluster()) else ["--cores", "1"]
    return shlex.join(["snakemake", *(["--configfile", *files] if files else []), *place])


def cluster():
    """The workflow profile that this run was started with, as it was given; None without one."""
    known = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    known.add_argument("--workflow-profile")
    return known.parse_known_args()[0].workflow_profile


def closing_line():
    """What to tell at the end of a run that went well."""
    if HAS_TEX:
        return f"The paper of study {STUDY.name!r} is {Path('paper/main.pdf').resolve()}"
    return (
        f"Everything of study {STUDY.name!r} but the PDF is built (paper/tables, paper/figures, "
        f"{RESULTS}/csv). For the PDF install TeX and run this again: apt-get install "
        "texlive-latex-extra texlive-science texlive-fonts-recommended latexmk"
    )


def tidy():
    """After a good end, remove what only a run that stops in the middle needs."""
    for job in workflow.dag.jobs:
        if job.rule.name == "cell":
            Path(job.output[0]).with_suffix(".contexts.jsonl").unlink(missing_ok=True)
    if all(Path(path).exists() for path in CELLS):
        Path(f"{RESULTS}/failures.md").unlink(missing_ok=True)


def failure_report(log):
    """Command that lists what failed, and how to run it again, in results/{study}/failures.md."""
    files = [os.path.relpath(path) for path in workflow.overwrite_configfiles]
    overlay = re.fullmatch(r"workflow/studies/([^/ ]+)\.yaml", files[0]) if files else None
    if not cluster() and (not files or (overlay and len(files) == 1)):
        rerun = f"make rerun STUDY={overlay[1] if overlay else 'default'} CELL=OUTPUT"
    else:
        rerun = f"{again()} OUTPUT"
    return (
        f"python -m kvbudget.study.failures --snakemake-log {shlex.quote(str(log[0]))} "
        f"--rerun {shlex.quote(rerun)} --out {RESULTS}/failures.md"
    )
