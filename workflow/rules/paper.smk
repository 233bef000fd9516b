# From CSV files to the PDF. What a table, a figure and the numbers are made from is declared in
# kvbudget.paper.registry. Sources lie in paper/, what is made of a study in PAPER_DIR.

TABLE_FILES = [
    f"{PAPER_DIR}/tables/{name}.tex"
    for name in [
        *(f"experiments/{each['name']}" for each in STUDY.experiments),
        *(name for name in paper.TABLES if name != "experiments"),
    ]
]
FIGURE_FILES = [f"{PAPER_DIR}/figures/{name}.pdf" for name in paper.FIGURES]
NUMBERS = f"{PAPER_DIR}/numbers.tex"
SOURCES = [
    "paper/main.tex",
    "paper/references.bib",
    *sorted(str(path) for path in Path("paper/sections").glob("*.tex")),
]
# Neither a draft nor what choices were made by takes the place of a paper.
PUBLISHED = not DRAFT and STUDY.config["split"] == "test"
CHECKED = f"{PAPER_DIR}/check.txt"
# Without TeX everything up to the PDF is built.
PAPER = f"{PAPER_DIR}/main.pdf" if HAS_TEX else CHECKED


wildcard_constraints:
    table="[a-z_]+|experiments/[a-z0-9][a-z0-9._-]*",
    figure="[a-z_]+",


rule table:
    input:
        study=PLAN,
        csv=lambda wildcards: data(table_of(wildcards)),
        template=lambda wildcards: template(table_of(wildcards)),
    output:
        f"{PAPER_DIR}/tables/{{table}}.tex",
    log:
        f"{LOGS}/tables/{{table}}.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        code=lambda wildcards: code(table_of(wildcards).module),
    shell:
        "python -m kvbudget table {wildcards.table} --study {input.study}"
        f" --csv {CSV_DIR}"
        " --out {output} > {log} 2>&1"


rule figure:
    input:
        study=PLAN,
        csv=lambda wildcards: data(figure_of(wildcards)),
    output:
        report(
            f"{PAPER_DIR}/figures/{{figure}}.pdf",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{LOGS}/figures/{{figure}}.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        code=lambda wildcards: code(figure_of(wildcards).module),
    shell:
        "python -m kvbudget figure {wildcards.figure} --study {input.study}"
        f" --csv {CSV_DIR}"
        " --out {output} > {log} 2>&1"


rule numbers:
    input:
        study=PLAN,
        csv=data(paper.NUMBERS),
        template=template(paper.NUMBERS),
    output:
        NUMBERS,
    log:
        f"{LOGS}/numbers.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        code=code(paper.NUMBERS.module),
    shell:
        "python -m kvbudget numbers --study {input.study}"
        f" --csv {CSV_DIR}"
        " --out {output} > {log} 2>&1"


rule check_paper:
    input:
        sources=SOURCES,
        csv=[f"{CSV_DIR}/{table}.csv" for table in TABLES],
        tables=TABLE_FILES,
        numbers=NUMBERS,
    output:
        CHECKED,
    log:
        f"{LOGS}/paper-check.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        code=code("kvbudget.paper.check"),
    shell:
        "python -m kvbudget check-paper --numbers {input.numbers}"
        f" --csv {CSV_DIR}"
        " --out {output} {input.tables} > {log} 2>&1"


rule pdf:
    input:
        sources=SOURCES,
        tables=TABLE_FILES,
        figures=FIGURE_FILES,
        numbers=NUMBERS,
        check=CHECKED,
    output:
        report(f"{PAPER_DIR}/main.pdf", caption="../report/paper.rst", category="Paper"),
    log:
        f"{LOGS}/latexmk.log",
    localrule: True
    conda:
        CONDA_PAPER
    params:
        study=STUDY.name,
        folder=Path(PAPER_DIR).name,
        # paper/main.pdf is the newest paper built.
        publish=f"cp {PAPER_DIR}/main.pdf paper/main.pdf" if PUBLISHED else "true",
    shell:
        # The date of the commit, so that the same commit and results give the same bytes.
        "(export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2> /dev/null || echo 1767225600)"
        " FORCE_SOURCE_DATE=1; cd paper && latexmk -pdf -g -interaction=nonstopmode -halt-on-error"
        " -file-line-error -usepretex='\\def\\generated{{{params.folder}}}' -outdir={params.folder}"
        " -auxdir={params.folder}/.latex -emulate-aux-dir main.tex) > {log} 2>&1"
        " && {params.publish}"
