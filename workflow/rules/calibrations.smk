# What each head of a model does, measured once on calibration prompts.


rule calibration:
    input:
        # Small files that stand for large ones. Which weights a result needs is told by `model`
        # below: a second download or check of the same weights must not make results again.
        verified=ancient("results/models/{model}.verified.json"),
        haystack=f"results/text/{HAYSTACK}.verified.json",
    output:
        ensure(f"{RESULTS}/calibrations/{{model}}{{calibration}}.json", non_empty=True),
    log:
        f"{LOGS}/calibrations/{{model}}{{calibration}}.log",
    conda:
        CONDA
    resources:
        gpu=1,
        mem_mb=memory_mb,
    params:
        spec=lambda wildcards: canonical(calibration_spec(wildcards)),
        code=STUDY.calibration_code,
        model=model_identity,
    shell:
        f"{OFFLINE} {ON_ONE_GPU} python -m kvbudget.calibration.calibrate --model {{wildcards.model}}"
        " --spec {params.spec:q} --code {params.code} --model-dir results/models/{wildcards.model}"
        f" --verified {{input.verified}} --text {TEXT}"
        " --out {output} 2> {log}"
