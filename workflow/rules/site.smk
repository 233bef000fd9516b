# The page of results: one HTML file with all that it needs inside. It is made when it is asked for by
# name (`make site`), as one of its parts needs the model once more, and nothing waits for it.

SHADE = shade.of_study(STUDY)
SHOWN = SHADE.cells if SHADE else ()
SHADED = [SHADE.path] if SHADE else []
SITE = f"{RESULTS}/draft/site.html" if DRAFT else f"{RESULTS}/site.html"


rule shade:
    input:
        study=PLAN,
        model=f"results/models/{SHOWN[0].model}/source.json" if SHOWN else [],
        verified=f"results/models/{SHOWN[0].model}.verified.json" if SHOWN else [],
        text=SHOWN[0].text if SHOWN else [],
        calibrations=unique(cell.calibration for cell in SHOWN if cell.calibration),
    output:
        ensure(f"{RESULTS}/shade-{{identity}}.json", non_empty=True),
    log:
        f"{LOGS}/shade-{{identity}}.log",
    wildcard_constraints:
        # As a cell, one that is there is right and no job.
        identity=one_of(Path(path).stem[6:] for path in SHADED if not Path(path).exists()),
    conda:
        CONDA
    threads: cores_of_a_job
    resources:
        gpu=1,
        mem_mb=shade_mb,
    shell:
        f"{MEASURE} shade --plan {{input.study}} > {{log}} 2>&1"


rule site:
    input:
        study=PLAN,
        csv=[f"{CSV_DIR}/{table}.csv" for table in TABLES],
        shade=SHADED,
        templates=sorted(map(str, Path("src/kvbudget/site/templates").iterdir())),
    output:
        report(SITE, caption="../report/site.rst", category="Page of results"),
    log:
        f"{LOGS}/site.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        code=code("kvbudget.site.page"),
    shell:
        f"python -m kvbudget site --plan {{input.study}} --csv {CSV_DIR} --out {{output}}"
        " > {log} 2>&1"
