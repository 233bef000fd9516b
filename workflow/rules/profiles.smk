# What each head of a model does, measured once on calibration prompts.


rule profile:
    input:
        verified="results/models/{model}.verified.json",
        haystack=f"results/text/{HAYSTACK}.verified.json",
        # Large, and told apart by the two small files above: they must be there, no more.
        model=ancient("results/models/{model}"),
        text=ancient(f"results/text/{HAYSTACK}.txt"),
    output:
        ensure(f"{RESULTS}/profiles/{{model}}.json", non_empty=True),
    log:
        f"{LOGS}/profiles/{{model}}.log",
    conda:
        CONDA
    resources:
        gpu=1,
    params:
        spec=canonical(STUDY.profile_spec),
        code=STUDY.profile_code,
    shell:
        OFFLINE + " python -m kvbudget.heads.profile --model {wildcards.model}"
        " --spec {params.spec:q} --code {params.code} --model-dir {input.model}"
        " --verified {input.verified} --text {input.text} --out {output} 2> {log}"
