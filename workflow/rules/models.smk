# What comes from outside: models, the haystack's text, and what this machine is.


rule download_model:
    output:
        directory("results/models/{model}"),
    log:
        "results/models/logs/{model}.download.log",
    localrule: True
    conda:
        CONDA
    params:
        spec=model_spec,
    shell:
        "python -m kvbudget.models.download --model {wildcards.model} --spec {params.spec:q}"
        " --out {output} > {log} 2>&1"


rule verify_model:
    input:
        model="results/models/{model}",
    output:
        ensure("results/models/{model}.verified.json", non_empty=True),
    log:
        "results/models/logs/{model}.verify.log",
    localrule: True
    conda:
        CONDA
    params:
        spec=model_spec,
        locked=locked_hashes,
        code=code("kvbudget.models.integrity"),
    shell:
        OFFLINE + " python -m kvbudget.models.integrity --model {wildcards.model}"
        " --dir {input.model} --lock " + LOCK + " --out {output} > {log} 2>&1"


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
        code=code("kvbudget.text"),
    shell:
        "python -m kvbudget.text --spec {params.spec:q} --out {output.text} > {log} 2>&1"


rule environment:
    output:
        ensure("results/environment.json", non_empty=True),
    log:
        "results/logs/environment.log",
    localrule: True
    conda:
        CONDA
    params:
        code=code("kvbudget.environment"),
        versions=provenance.library_versions("torch", "transformers", "snakemake"),
    shell:
        "python -m kvbudget.environment --out {output} > {log} 2>&1"
