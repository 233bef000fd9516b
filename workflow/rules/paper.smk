# From CSV files to the PDF. paper/ belongs to the study that was rendered last: `study` among the
# params makes another study render its own.

EXPERIMENT_TABLES = [f"paper/tables/{experiment}.tex" for experiment in STUDY.experiments]
TABLE_FILES = EXPERIMENT_TABLES + [
    f"paper/tables/{name}.tex" for name in ("statistics", "provenance", "all")
]
FIGURE_FILES = [
    f"paper/figures/{name}.pdf"
    for name in ("quality", "memory", "speed", "heads", "allocation", "loss_curves")
]
SOURCES = [
    "paper/main.tex",
    "paper/references.bib",
    *sorted(str(path) for path in Path("paper/sections").glob("*.tex")),
]
CHECKED = f"{RESULTS}/paper-check.txt"
# Without TeX everything up to the PDF is built.
PAPER = "paper/main.pdf" if HAS_TEX else CHECKED


rule tables:
    input:
        study=f"{RESULTS}/study.json",
        csv=CSV,
        templates=sorted(
            str(path) for path in Path("src/kvbudget/paper/templates").glob("*") if path.is_file()
        ),
    output:
        TABLE_FILES,
    log:
        f"{LOGS}/tables.log",
    localrule: True
    conda:
        CONDA
    params:
        study=STUDY.name,
        code=code("kvbudget.paper.tables"),
    shell:
        "python -m kvbudget.paper.tables --study {input.study}"
        f" --csv {RESULTS}/csv --out paper/tables > {{log}} 2>&1"


rule figures:
    input:
        study=f"{RESULTS}/study.json",
        csv=CSV,
    output:
        [
            report(file, caption=f"../report/{Path(file).stem}.rst", category="Figures")
            for file in FIGURE_FILES
        ],
    log:
        f"{LOGS}/figures.log",
    localrule: True
    conda:
        CONDA
    params:
        study=STUDY.name,
        code=code("kvbudget.paper.figures"),
    shell:
        "python -m kvbudget.paper.figures --study {input.study}"
        f" --csv {RESULTS}/csv --out paper/figures > {{log}} 2>&1"


rule numbers:
    input:
        study=f"{RESULTS}/study.json",
        csv=CSV,
        environment="results/environment.json",
    output:
        "paper/numbers.tex",
    log:
        f"{LOGS}/numbers.log",
    localrule: True
    conda:
        CONDA
    params:
        study=STUDY.name,
        code=code("kvbudget.paper.numbers"),
    shell:
        "python -m kvbudget.paper.numbers --study {input.study}"
        f" --csv {RESULTS}/csv --environment {{input.environment}} --out {{output}}"
        " > {log} 2>&1"


rule check_paper:
    input:
        sources=SOURCES,
        csv=CSV,
        tables=TABLE_FILES,
        figures=FIGURE_FILES,
        numbers="paper/numbers.tex",
    output:
        CHECKED,
    log:
        f"{LOGS}/paper-check.log",
    localrule: True
    conda:
        CONDA
    params:
        study=STUDY.name,
        code=code("kvbudget.paper.check"),
    shell:
        "python -m kvbudget.paper.check --paper paper"
        f" --csv {RESULTS}/csv --out {{output}} > {{log}} 2>&1"


rule pdf:
    input:
        sources=SOURCES,
        tables=TABLE_FILES,
        figures=FIGURE_FILES,
        numbers="paper/numbers.tex",
        check=CHECKED,
    output:
        report("paper/main.pdf", caption="../report/paper.rst", category="Paper"),
    log:
        f"{LOGS}/latexmk.log",
    localrule: True
    conda:
        CONDA
    params:
        study=STUDY.name,
    shell:
        # The date of the commit, so that the same commit and results give the same bytes.
        "export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2> /dev/null || echo 1767225600)"
        " FORCE_SOURCE_DATE=1; cd paper && latexmk -pdf -g -interaction=nonstopmode -halt-on-error"
        " -file-line-error -auxdir=.latex -emulate-aux-dir main.tex > ../{log} 2>&1"
