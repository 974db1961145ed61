# A checkpoint and no input: a receipt among the inputs would be a reason to fetch and train everything again.
checkpoint check:
    output:
        CHECKED,
    log:
        "<logs>/check.log",
    benchmark:
        "<benchmarks>/check.tsv"
    conda:
        TRAINING_ENV
    threads: 1
    resources:
        mem_mb=CFG.resources.prepare_mem_mb,
        runtime=CFG.resources.prepare_runtime_min,
        gpu=min(CFG.gpus, 1),
    params:
        mgi=mgi_command,
        options=lambda wildcards: PLAN.check_options(),
    shell:
        "{params.mgi:q} check {params.options:q} --receipt {output:q} > {log:q} 2>&1"
