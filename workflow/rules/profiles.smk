# What each head of a model does, measured once on calibration prompts.


rule profile:
    input:
        verified="results/models/{model}.verified.json",
        haystack=f"results/text/{HAYSTACK}.verified.json",
        # The weights and the text must be there; the two small files above tell them apart.
        model=ancient("results/models/{model}/source.json"),
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
        " --spec {params.spec:q} --code {params.code} --model-dir results/models/{wildcards.model}"
        " --verified {input.verified} --text {input.text} --out {output} 2> {log}"
