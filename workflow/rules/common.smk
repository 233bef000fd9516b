# The study: validated and expanded once, before any rule is read. Everything else that rules share
# is here too, so that the other files hold rules and nothing else. Nothing here writes to disk.
import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
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

from kvbudget.errors import UserError
from kvbudget.paper import registry as paper
from kvbudget.policies.registry import method as method_named
from kvbudget.run import lease, warm
from kvbudget.run.peers.environment import python as python_of_peers
from kvbudget.study import (
    identity,
    prefills,
    provenance,
    published,
    resources,
    running,
    shade,
    status,
)
from kvbudget.study.config import validate
from kvbudget.study.expand import code_parts
from kvbudget.study.expand import expand as expand_study
from kvbudget.study.identity import canonical


def started_with():
    """The options of this run that say what to compute and where, by name."""
    known = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    known.add_argument("--configfile", "--configfiles", nargs="+", default=[])
    known.add_argument("--config", "-C", nargs="*", default=[])
    known.add_argument("--workflow-profile")
    return known.parse_known_args()[0]


def again():
    """The words of the command that runs part of this study where this run does."""
    given = started_with()
    words = ["snakemake"]
    words += ["--configfile", *given.configfile] if given.configfile else []
    words += ["--config", *given.config] if given.config else []
    if given.workflow_profile:
        return [*words, "--workflow-profile", given.workflow_profile]
    return [*words, "--cores", "1", "--resources", "gpu=1"]


try:
    with open(ROOT / "workflow/schemas/config.schema.yaml") as _schema:
        STUDY = expand_study(validate(config, yaml.safe_load(_schema)), command=again())
except UserError as error:
    raise WorkflowError(str(error)) from None

RESULTS = STUDY.directory
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
# A draft is the paper of what is finished, in folders of its own.
DRAFT = STUDY.config["draft"]
CSV_DIR = f"{RESULTS}/draft/csv" if DRAFT else f"{RESULTS}/csv"
PAPER_DIR = f"paper/{STUDY.name}{'-draft' if DRAFT else ''}"
PLAN = f"{RESULTS}/study-{STUDY.identity[: identity.DIGITS]}.json"
# The name of a result holds the identity of all that it depends on, so one that is there is right
# and no job. Only those that are missing are made; nothing is ever compared, dated or overwritten.
CELLS = {cell.path: cell for cell in STUDY.cells}
CALIBRATIONS = {each.path: each for each in STUDY.calibrations}
# Published results are unpacked and never made.
ARCHIVE, UNPACKED = published.archive_of(STUDY.name), published.outdated(STUDY)
MISSING = {each.path for each in STUDY.results if not (each.published or Path(each.path).exists())}
# Those that are asked for by name are jobs too: --force makes one again.
NAMED = {word for word in sys.argv if word.startswith(("results/cells/", "results/calibrations/"))}
for _word in sorted(NAMED - CELLS.keys() - CALIBRATIONS.keys()):
    raise WorkflowError(
        f"{_word} is no result of study {STUDY.name!r} as it is configured and coded now; "
        "kvbudget status lists them, and --configfile names another study"
    )
# Contexts that are read once for all methods of a place.
PREFILLS = {each.path: each for each in prefills.of_study(STUDY)}
SHARING = STUDY.config["prefills"]
# Nothing that computes may reach for the network.
OFFLINE = "HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1"
# On a machine with several GPUs each job has one to itself.
MEASURE = f"{OFFLINE} KVBUDGET_THREADS={{threads}} python -m kvbudget lease python -m kvbudget"
HAS_TEX = shutil.which("latexmk") is not None
CONDA = str(ROOT / "workflow/envs/measuring.yaml")
CONDA_PAPER = str(ROOT / "workflow/envs/paper.yaml")
# Jobs read these from the environment: a result does not count as another because of them.
os.environ.update(KVBUDGET_COMMAND=shlex.join(STUDY.command))
if STUDY.config["device"] != "auto":
    os.environ.update(KVBUDGET_DEVICE=STUDY.config["device"])


def unique(words):
    """Each once, in order."""
    return list(dict.fromkeys(words))


def one_of(words):
    """A pattern that matches these words alone; none of them matches nothing."""
    return "|".join(map(re.escape, sorted(words))) or "(?!)"


def identities(paths):
    """The last part of the names of the results that jobs may make."""
    made = MISSING | NAMED
    return one_of(Path(path).stem.rpartition("-")[2] for path in paths if path in made)


def ageless(find):
    """An input whose age says nothing of a result that is there: which model and text that needs is
    told by its name. For one that is missing it is an input as any other, as Snakemake leaves a job
    out, missing output or not, if all that is made anew for it is ancient (its issue 4166)."""

    def found(wildcards):
        path = find(wildcards)
        return path if planned(wildcards).path in MISSING else ancient(path)

    return found


# The missing cells that this run is to make: those it names, or all.
WANTED = MISSING.intersection(CELLS).intersection(sys.argv[1:]) or MISSING.intersection(CELLS)
WORTHWHILE = {each.path for each in prefills.worthwhile(STUDY, WANTED)}


def recorded(wildcards):
    """The recorded contexts that a cell takes: none where it can take none, or they do not pay."""
    cell = planned(wildcards).path
    (path,) = [path for path, each in PREFILLS.items() if cell in each.cells] or [None]
    if not workflow.is_main_process:  # a job on another machine: the run has decided for it
        return [path] if path and Path(path).exists() else []
    alike = workflow.local_exec and not lease.visible(os.environ)
    return [path] if path in WORTHWHILE and (alike or SHARING["share"] == "always") else []


wildcard_constraints:
    model=one_of(STUDY.config["models"]),
    haystack=one_of(Path(path).stem for path in STUDY.texts),
    task="[a-z0-9][a-z0-9._-]*",
    method="[a-z0-9][a-z0-9._-]*",
    calibration="[a-z0-9][a-z0-9._-]*",
    length=r"\d+",
    budget=r"full|\d+|\d+(\.\d+)?p",


def planned(wildcards):
    """The cell, calibration or recorded contexts of this study that a job makes."""
    if "method" in wildcards.keys():
        path = (
            f"results/cells/{wildcards.model}/{wildcards.task}/L{wildcards.length}/"
            f"{wildcards.method}/B{wildcards.budget}-{wildcards.identity}.json"
        )
        return CELLS[path]
    if "length" in wildcards.keys():
        place = f"{wildcards.model}/{wildcards.task}/L{wildcards.length}"
        return PREFILLS[f"{prefills.STORE}/{place}/{wildcards.identity}"]
    name = f"{wildcards.calibration}-{wildcards.identity}"
    return CALIBRATIONS[f"results/calibrations/{wildcards.model}/{name}.json"]


def as_inputs(paths):
    """Files of the user's own as inputs: those that are there. Snakemake would take braces for
    wildcards; a name with some does without, as the text's own name tells of its content."""
    return [path for path in paths if Path(path).exists() and not re.search("[{}]", path)]


def haystack_entry(wildcards):
    """The entry of the haystack that a text is made from."""
    key = wildcards.haystack.rpartition("-")[0]
    return STUDY.config["haystacks"][key]


def haystack_files(wildcards):
    """Files of the user's own that a text is made from, where they are."""
    return as_inputs(identity.text_files(haystack_entry(wildcards)))


def model_files(wildcards):
    """Files of a model's folder of the user's own, so that a changed one is taken again."""
    entry = STUDY.config["models"][wildcards.model]
    if entry["source"] != "local":
        return []
    folder = Path(entry["path"])
    return as_inputs(f"{folder}/{name}" for name, *_ in identity.fingerprint(folder))


def model_identity(wildcards):
    """Digest of where a model comes from and of the hashes of its files."""
    return identity.model_identity(wildcards.model, STUDY.config["models"][wildcards.model], Path())


def cores_of_a_job(wildcards):
    """Cores shared by as many measurements as run at once here; a cluster's profile says its own."""
    try:
        cores = workflow.cores
    except WorkflowError:
        return 1
    at_once = workflow.global_resources.get("gpu")
    return max(1, cores // (at_once.value if at_once else 1))


def memory_mb(wildcards, input, attempt):
    """Memory of a job that runs a model; more at each attempt, as too little ends in a kill."""
    spec = planned(wildcards).spec
    return attempt * resources.memory_mb(Path(input.verified), spec["dtype"], spec["length"])


def prefills_mb(wildcards, input):
    """Disk for the recorded contexts of a place."""
    spec = planned(wildcards).spec
    sizes = (spec["dtype"], spec["length"], spec["samples"]["contexts"])
    return min(1000 * SHARING["disk_gb"], resources.prefills_mb(Path(input.verified), *sizes))


def shade_mb(wildcards, input, attempt):
    """Memory of the job that reads one context by each method."""
    spec = SHOWN[0].spec
    return attempt * resources.memory_mb(Path(input.verified), spec["dtype"], spec["length"])


def code(*modules):
    """Digest of the code of some modules and all that they import; see kvbudget.study.provenance."""
    try:
        return provenance.code_digest(modules)
    except UserError as error:
        raise WorkflowError(str(error)) from None


def of_paper(find):
    """What `find` of the registry finds, with its error as one of Snakemake's."""
    try:
        return find()
    except UserError as error:
        raise WorkflowError(str(error)) from None


def table_of(wildcards):
    """How a table of this study is made."""
    return of_paper(lambda: paper.table(wildcards.table))[0]


def figure_of(wildcards):
    """How a figure is made."""
    return of_paper(lambda: paper.figure(wildcards.figure))


def data(made):
    """The CSV files that a generated file is made from."""
    return [f"{CSV_DIR}/{table}.csv" for table in made.csv]


def template(made):
    """The template that a generated file fills."""
    return f"src/kvbudget/paper/templates/{made.template}"


def measures_here():
    """Whether this run measures anything, and does so on this machine."""
    rules = {job.rule.name for job in workflow.dag.needrun_jobs()}
    return bool(rules & {"cell", "calibration"}) and workflow.local_exec


def warm_up():
    """Import what measurements need once for all, if they run on this interpreter."""
    elsewhere = workflow.deployment_settings.deployment_method
    if measures_here() and warm.possible() and not elsewhere:
        warm.start()


def tell_at_once():
    """Let measurements know that others run beside them on their device: then times are no good."""
    asked = workflow.global_resources.get("gpu")
    # Of several GPUs each has one to itself, as each has its node on a cluster.
    if asked and workflow.local_exec and len(lease.visible(os.environ)) < 2:
        os.environ.update(KVBUDGET_AT_ONCE=str(max(1, min(asked.value, workflow.cores))))


def tell_progress():
    """Hold what says that the study runs, and tell how far it is, a line every so often."""
    running.hold(STUDY)

    def tell():
        for state in status.Watch(STUDY).changes(seconds=15):
            print(f"progress: {state.line()}", file=sys.stderr, flush=True)

    if any(job.rule.name == "cell" for job in workflow.dag.needrun_jobs()):
        threading.Thread(target=tell, daemon=True).start()


def refuse_early():
    """Tell at the start, once, what would make every measurement of this run fail."""
    place = next(path for path in (Path(RESULTS), Path("results"), Path()) if path.exists())
    if not os.access(place, os.W_OK):
        raise WorkflowError(f"{place.resolve()} cannot be written; make it writable for you")
    if measures_here() and any(method_named(CELLS[path].policy).elsewhere for path in WANTED):
        try:
            python_of_peers()
        except UserError as error:
            raise WorkflowError(str(error)) from None
    # On a cluster, the jobs look for themselves.
    if measures_here() and STUDY.config["device"] == "cuda":
        command = [sys.executable, "-m", "kvbudget", "environment", "--require-cuda"]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise WorkflowError(found.stderr.strip().splitlines()[-1].removeprefix("error: "))


def closing_line():
    """What to tell at the end of a run that went well: of a paper only where one was asked for."""
    rules = {job.rule.name for job in workflow.dag.jobs}
    if "site" in rules:
        return f"The page of results of study {STUDY.name!r} is {Path(SITE).resolve()}"
    if "pdf" in rules:
        paper_of = f"The paper of study {STUDY.name!r} is {Path(PAPER_DIR, 'main.pdf').resolve()}"
        if not STUDY.published:
            return paper_of
        planned_cells = len(STUDY.cells) + STUDY.left_out
        return (
            f"{paper_of}. Its records are published ({len(STUDY.cells)} of {planned_cells} planned "
            f"cells, {ARCHIVE}); --config published={published.IGNORE} measures them anew"
        )
    if "all" in rules:
        return (
            f"Everything of study {STUDY.name!r} but the PDF is built ({PAPER_DIR}, {CSV_DIR}). For "
            "the PDF install TeX and run this again: apt-get install "
            "texlive-latex-extra texlive-science texlive-fonts-recommended latexmk"
        )
    return f"What was asked for of study {STUDY.name!r} is there"


def give_back():
    """Remove recorded contexts that an earlier run left, but for those that this one takes."""
    taken = {str(file) for job in workflow.dag.needrun_jobs() for file in job.input}
    for folder in Path(prefills.STORE).glob("*/*/L*/*"):
        if str(folder) not in taken:
            shutil.rmtree(folder, ignore_errors=True)


def tidy():
    """After a good end, remove what only a run that stops in the middle needs, and the plans that
    its CSV files were made from before; a draft has files of its own."""
    for path in CELLS:
        if Path(path).exists():
            Path(path).with_suffix(".contexts.jsonl").unlink(missing_ok=True)
    if all(Path(path).exists() for path in CELLS):
        Path(f"{RESULTS}/failures.md").unlink(missing_ok=True)
    rules = {job.rule.name for job in workflow.dag.jobs}
    if "site" in rules:
        for other in Path(RESULTS).glob("shade-*.json"):
            if str(other) not in SHADED:
                other.unlink()
    if "all" in rules:
        for plan in Path(RESULTS).glob("study-*.json"):
            made_for = json.loads(plan.read_text(encoding="utf-8"))["config"]
            if str(plan) != PLAN and made_for["draft"] == DRAFT:
                plan.unlink()


def failure_report(log):
    """Command that lists what failed, and how to run it again, in results/{study}/failures.md."""
    given = started_with()
    overlay = re.fullmatch(r"workflow/studies/([\w.-]+)\.yaml", " ".join(given.configfile))
    if not (given.workflow_profile or given.config) and (overlay or not given.configfile):
        rerun = f"make rerun STUDY={overlay[1] if overlay else 'default'} CELL=OUTPUT"
    else:
        rerun = f"{shlex.join(STUDY.command)} -- OUTPUT"
    return (
        f"python -m kvbudget failures --snakemake-log {shlex.quote(str(log[0]))} "
        f"--rerun {shlex.quote(rerun)} --out {RESULTS}/failures.md"
    )
