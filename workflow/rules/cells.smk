# One process for each (model, task, length, method, budget) that has no record yet.


rule cell:
    input:
        model=ageless(lambda wildcards: f"results/models/{wildcards.model}/source.json"),
        verified=ageless(lambda wildcards: f"results/models/{wildcards.model}.verified.json"),
        text=ageless(lambda wildcards: planned(wildcards).text),
        calibration=ageless(lambda wildcards: planned(wildcards).calibration or []),
        prefills=recorded,
    output:
        ensure(
            "results/cells/{model}/{task}/L{length}/{method}/B{budget}-{identity}.json",
            non_empty=True,
        ),
    log:
        f"{LOGS}/cells/{{model}}/{{task}}/L{{length}}/{{method}}/B{{budget}}-{{identity}}.log",
    benchmark:
        f"{BENCHMARKS}/cells/{{model}}/{{task}}/L{{length}}/{{method}}/B{{budget}}-{{identity}}.tsv"
    wildcard_constraints:
        identity=identities(CELLS),
    # Before more contexts are recorded, those that are there are used and given back.
    priority: 1
    conda:
        CONDA
    threads: cores_of_a_job
    resources:
        gpu=1,
        mem_mb=memory_mb,
    params:
        spec=lambda wildcards: canonical(planned(wildcards).spec),
        code=lambda wildcards: planned(wildcards).code,
        identity=lambda wildcards: planned(wildcards).identity,
        model=model_identity,
        calibration=lambda wildcards, input: (
            f"--calibration {input.calibration}" if input.calibration else ""
        ),
        prefills=lambda wildcards, input: (
            f"--prefills {input.prefills} --own-contexts {SHARING['own_contexts']}"
            if input.prefills
            else ""
        ),
    shell:
        f"{MEASURE} cell --spec {{params.spec:q}} --code {{params.code}}"
        " --identity {params.identity} --model-identity {params.model}"
        " --model-dir results/models/{wildcards.model} --verified {input.verified}"
        " --text {input.text} {params.calibration} {params.prefills} --out {output} 2> {log}"
