# What comes from outside: models, texts, and what this machine is.


rule download_model:
    input:
        # Of a folder of the user's own: a file that changed is taken again.
        model_files,
    output:
        # Written last, beside the weights: what this model is and where it came from.
        ensure("results/models/{model}/source.json", non_empty=True),
    log:
        "results/models/logs/{model}.download.log",
    retries: 2
    localrule: True
    conda:
        CONDA
    params:
        spec=lambda wildcards: canonical(
            identity.model_entry(STUDY.config["models"][wildcards.model])
        ),
    shell:
        "python -m kvbudget fetch-model --model {wildcards.model} --spec {params.spec:q}"
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
        identity=model_identity,
        code=code("kvbudget.sources.integrity"),
    shell:
        f"{OFFLINE} python -m kvbudget verify-model --model {{wildcards.model}} --lock {identity.LOCK}"
        " --dir results/models/{wildcards.model} --identity {params.identity} --out {output}"
        " > {log} 2>&1"


rule text:
    input:
        haystack_files,
    output:
        text=ensure("results/text/{haystack}.txt", non_empty=True),
        verified="results/text/{haystack}.verified.json",
    log:
        "results/text/logs/{haystack}.log",
    retries: 2
    localrule: True
    conda:
        CONDA
    params:
        spec=lambda wildcards: canonical(identity.text_entry(haystack_entry(wildcards))),
    shell:
        "python -m kvbudget text --spec {params.spec:q} --out {output.text} > {log} 2>&1"


if UNPACKED:

    rule unpack:
        input:
            ARCHIVE,
        output:
            UNPACKED,
        log:
            f"{LOGS}/unpack.log",
        localrule: True
        conda:
            CONDA_PAPER
        shell:
            "python -m kvbudget unbundle --published {input} > {log} 2>&1"
