# The contexts of a model, task and length, read once for all methods that adopt them.


rule prefill:
    input:
        model="results/models/{model}/source.json",
        verified="results/models/{model}.verified.json",
        text=lambda wildcards: planned(wildcards).text,
    output:
        # Given back when the last of the missing cells has taken what it needs.
        temp(directory(f"{prefills.STORE}/{{model}}/{{task}}/L{{length}}/{{identity}}")),
    log:
        f"{LOGS}/prefills/{{model}}/{{task}}/L{{length}}/{{identity}}.log",
    benchmark:
        f"{BENCHMARKS}/prefills/{{model}}/{{task}}/L{{length}}/{{identity}}.tsv"
    wildcard_constraints:
        identity=one_of(Path(path).name for path in PREFILLS),
    conda:
        CONDA
    threads: cores_of_a_job
    resources:
        gpu=1,
        mem_mb=memory_mb,
        disk_mb=prefills_mb,
    params:
        spec=lambda wildcards: canonical(planned(wildcards).spec),
        model=model_identity,
        disk_gb=SHARING["disk_gb"],
    shell:
        # Without them cells read by themselves: too little memory or disk for this job, which may
        # be killed for it, must not stop them. What would stop them too, they tell.
        "trap 'exit 130' INT; "
        f"{MEASURE} prefill --spec {{params.spec:q}} --model-identity {{params.model}}"
        " --model-dir results/models/{wildcards.model} --verified {input.verified}"
        f" --text {{input.text}} --disk-gb {{params.disk_gb}} --store {prefills.STORE}"
        " --out {output} > {log} 2>&1 || {{ rm -rf {output}; mkdir -p {output};"
        " echo 'Contexts could not be recorded, and cells read them by themselves; why is told in'"
        " {log} >&2; }}"
