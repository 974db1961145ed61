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


# What fetching and training wait for. Its files stay where a check fails, so that a configuration that is put right
# finds everything made before it in order.
rule admit:
    input:
        rules.check.output,
    output:
        fetching=touch("<resources>/checked"),
        training=touch("<results>/checked"),
