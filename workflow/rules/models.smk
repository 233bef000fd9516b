# What comes from outside: models, the haystack's text, and what this machine is.


rule download_model:
    output:
        # Written last, beside the weights: what this model is and where it came from.
        ensure("results/models/{model}/source.json", non_empty=True),
    log:
        "results/models/logs/{model}.download.log",
    localrule: True
    conda:
        CONDA
    params:
        spec=model_spec,
    shell:
        "python -m kvbudget.sources.download --model {wildcards.model} --spec {params.spec:q}"
        " --out results/models/{wildcards.model} > {log} 2>&1"


rule verify_model:
    input:
        "results/models/{model}/source.json",
    output:
        ensure("results/models/{model}.verified.json", non_empty=True),
    log:
        "results/models/logs/{model}.verify.log",
    localrule: True
    conda:
        CONDA
    params:
        locked=locked_hashes,
        code=code("kvbudget.sources.integrity"),
    shell:
        f"{OFFLINE} python -m kvbudget.sources.integrity --model {{wildcards.model}} --lock {LOCK}"
        " --dir results/models/{wildcards.model} --out {output} > {log} 2>&1"


rule haystack:
    output:
        text=ensure("results/text/{haystack}.txt", non_empty=True),
        verified="results/text/{haystack}.verified.json",
    log:
        "results/text/logs/{haystack}.log",
    localrule: True
    conda:
        CONDA
    params:
        spec=haystack_spec,
        code=code("kvbudget.sources.text"),
    shell:
        "python -m kvbudget.sources.text --spec {params.spec:q} --out {output.text} > {log} 2>&1"


rule environment:
    output:
        ensure("results/environment.json", non_empty=True),
    log:
        "results/logs/environment.log",
    localrule: True
    conda:
        CONDA
    params:
        code=code("kvbudget.run.environment"),
        versions=provenance.library_versions("torch", "transformers", "snakemake"),
    shell:
        "python -m kvbudget.run.environment --out {output} > {log} 2>&1"
