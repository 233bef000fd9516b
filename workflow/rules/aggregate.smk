# From the cells' records to tidy CSV files (kvbudget.analysis.schema describes each).

TABLES = [
    "cells",
    "comparisons",
    "pooled",
    "orders",
    "held",
    "heads",
    "allocation",
    "loss_curves",
    "stability",
    "scorer",
    "ranks",
    "models",
    "provenance",
    "code_digests",
    "missing",
]
CSV = [f"{CSV_DIR}/{table}.csv" for table in TABLES]
# A draft takes what is there; a paper, all.
RECORDS = [path for path in (*CELLS, *CALIBRATIONS) if not (DRAFT and path in MISSING)]


rule plan:
    output:
        PLAN,
    log:
        f"{LOGS}/plan.log",
    localrule: True
    conda:
        CONDA
    params:
        config=canonical(STUDY.config),
    shell:
        "python -m kvbudget expand --config {params.config:q} --out {output} > {log} 2>&1"


rule aggregate:
    input:
        RECORDS,
        study=PLAN,
        models=expand("results/models/{model}.verified.json", model=MODELS),
    output:
        [report(file, caption="../report/csv.rst", category="Data") for file in CSV],
        f"{CSV_DIR}/README.md",
    log:
        f"{LOGS}/aggregate.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        code=code("kvbudget.analysis.aggregate"),
        draft="--draft" if DRAFT else "",
    shell:
        "python -m kvbudget aggregate --study {input.study} {params.draft}"
        f" --out {CSV_DIR} > {{log}} 2>&1"
