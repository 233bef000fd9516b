# One process for each (model, task, length, method, budget). The path tells the axes; `spec` and
# `code` tell everything else the result depends on, and Snakemake compares them with the last run.


rule cell:
    input:
        # Small files that stand for large ones. Which weights a result needs is told by `model`
        # below: a second download or check of the same weights must not make results again.
        verified=ancient("results/models/{model}.verified.json"),
        haystack=lambda wildcards: (
            f"results/text/{cell_of(wildcards).spec['haystack']}.verified.json"
        ),
        calibration=lambda wildcards: cell_of(wildcards).calibration or [],
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
        mem_mb=memory_mb,
    params:
        spec=lambda wildcards: canonical(cell_of(wildcards).spec),
        code=lambda wildcards: cell_of(wildcards).code,
        model=model_identity,
        text=lambda wildcards: f"results/text/{cell_of(wildcards).spec['haystack']}.txt",
        calibration=lambda wildcards, input: f"--calibration {input.calibration}" if input.calibration else "",
    shell:
        f"{OFFLINE} {ON_ONE_GPU} python -m kvbudget.run.cell --spec {{params.spec:q}} --code {{params.code}}"
        f" --model-dir results/models/{{wildcards.model}} --verified {{input.verified}}"
        " --text {params.text} {params.calibration} --out {output} 2> {log}"
