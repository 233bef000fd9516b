# One process for each (model, task, length, method, budget). The path tells the axes; `spec` and
# `code` tell everything else the result depends on, and Snakemake compares them with the last run.


rule cell:
    input:
        verified="results/models/{model}.verified.json",
        haystack=f"results/text/{HAYSTACK}.verified.json",
        # The weights and the text must be there; the two small files above tell them apart.
        model=ancient("results/models/{model}/source.json"),
        text=ancient(f"results/text/{HAYSTACK}.txt"),
        profile=lambda wildcards: (
            [STUDY.profile_path(wildcards.model)] if cell_of(wildcards).needs_profile else []
        ),
    output:
        ensure(
            f"{RESULTS}/cells/{{model}}/{{task}}/L{{length}}/{{method}}/B{{budget}}.json",
            non_empty=True,
        ),
    log:
        f"{LOGS}/cells/{{model}}/{{task}}/L{{length}}/{{method}}/B{{budget}}.log",
    conda:
        CONDA
    resources:
        gpu=1,
    params:
        spec=lambda wildcards: canonical(cell_of(wildcards).spec),
        code=lambda wildcards: cell_of(wildcards).code,
        profile=lambda wildcards, input: f"--profile {input.profile}" if input.profile else "",
    shell:
        OFFLINE + " python -m kvbudget.cell --spec {params.spec:q} --code {params.code}"
        " --model-dir results/models/{wildcards.model} --verified {input.verified} --text {input.text}"
        " {params.profile} --out {output} 2> {log}"
