rule check:
    output:
        # A check that fails leaves the receipts of an earlier one: models of an earlier run stay valid.
        fetching=update("<resources>/checked.json"),
        training=update("<results>/checked.json"),
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
        gpu=PLAN.gpus,
    params:
        mgi=mgi_command,
        options=lambda wildcards: PLAN.check_options(),
    shell:
        "{params.mgi:q} check {params.options:q} --receipt {output.fetching:q} "
        "--receipt {output.training:q} > {log:q} 2>&1"
