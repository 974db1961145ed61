rule check:
    output:
        f"<results>/checks/{PLAN.check_digest()}.json",
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
        "{params.mgi:q} check {params.options:q} --receipt {output:q} > {log:q} 2>&1"


# Fetching and training wait for this. Its files stay where a check fails, so that nothing runs again once the
# configuration is corrected.
rule admit:
    input:
        rules.check.output,
    output:
        fetching=touch("<resources>/checked"),
        training=touch("<results>/checked"),
