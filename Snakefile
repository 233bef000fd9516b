# From shipped weights to the paper's PDF. What each part does is in workflow/rules/.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


report: "workflow/report/study.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/calibrations.smk"
include: "workflow/rules/prefills.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/aggregate.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/site.smk"


rule all:
    default_target: True
    input:
        # Every result by name, not just the last: one that was deleted is then made again.
        RECORDS,
        CSV,
        TABLE_FILES,
        FIGURE_FILES,
        PAPER,
    localrule: True


onstart:
    refuse_early()
    tell_at_once()
    tell_progress()
    warm_up()
    give_back()


onsuccess:
    tidy()
    print(closing_line())


onerror:
    shell(failure_report(log))
