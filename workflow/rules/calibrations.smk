# What each head of a model does, and what scores and budgets are fitted to it, once a model.


rule calibration:
    input:
        model=ageless(lambda wildcards: f"results/models/{wildcards.model}/source.json"),
        verified=ageless(lambda wildcards: f"results/models/{wildcards.model}.verified.json"),
        text=ageless(lambda wildcards: planned(wildcards).text),
    output:
        ensure("results/calibrations/{model}/{calibration}-{identity}.json", non_empty=True),
    log:
        f"{LOGS}/calibrations/{{model}}/{{calibration}}-{{identity}}.log",
    benchmark:
        f"{BENCHMARKS}/calibrations/{{model}}/{{calibration}}-{{identity}}.tsv"
    wildcard_constraints:
        identity=identities(CALIBRATIONS),
    # As cells, of which some wait for it with recorded contexts in hand.
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
    shell:
        f"{MEASURE} calibration --model {{wildcards.model}} --spec {{params.spec:q}}"
        " --code {params.code} --identity {params.identity} --model-identity {params.model}"
        " --model-dir results/models/{wildcards.model} --verified {input.verified}"
        " --text {input.text} --out {output} 2> {log}"
