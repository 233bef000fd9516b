# From the cells' records to tidy CSV files (kvbudget.analysis.schema describes each).

TABLES = [
    "cells",
    "comparisons",
    "pooled",
    "heads",
    "allocation",
    "loss_curves",
    "stability",
    "models",
    "provenance",
    "code_digests",
    "missing",
]
CSV = [f"{RESULTS}/csv/{table}.csv" for table in TABLES]


rule plan:
    output:
        f"{RESULTS}/study.json",
    log:
        f"{LOGS}/plan.log",
    # First of all, so that `make status` knows what is to be done.
    priority: 1
    localrule: True
    conda:
        CONDA
    params:
        config=canonical(STUDY.config),
        plan=PLAN,
        code=code("kvbudget.study.expand"),
    shell:
        "python -m kvbudget.study.expand --config {params.config:q} --out {output} > {log} 2>&1"


rule aggregate:
    input:
        study=f"{RESULTS}/study.json",
        cells=list(CELLS),
        calibrations=list(STUDY.calibrations),
        models=expand("results/models/{model}.verified.json", model=STUDY.models),
    output:
        [report(file, caption="../report/csv.rst", category="Data") for file in CSV],
        f"{RESULTS}/csv/README.md",
    log:
        f"{LOGS}/aggregate.log",
    localrule: True
    conda:
        CONDA
    params:
        code=code("kvbudget.analysis.aggregate"),
    shell:
        "python -m kvbudget.analysis.aggregate --study {input.study}"
        f" --out {RESULTS}/csv --models results/models --calibrations {RESULTS}/calibrations > {{log}} 2>&1"
