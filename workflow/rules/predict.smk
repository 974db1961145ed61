# A target of its own for each series, or batch of slides: none is part of the default target.
rule predict:
    input:
        images=images_to_predict,
        expression=profiles,
        model="<results>/{cohort}/finetune/{variant}/all/model.safetensors",
        config="<results>/{cohort}/finetune/{variant}/all/config.json",
    output:
        directory("<results>/{cohort}/predict/{variant}/{source}"),
    log:
        "<logs>/{cohort}/predict/{variant}/{source}.log",
    benchmark:
        "<benchmarks>/{cohort}/predict/{variant}/{source}.tsv"
    wildcard_constraints:
        variant=match_exactly(CFG.finetune),
    conda:
        environment("predict")
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
    params:
        mgi=mgi_command,
        folder=lambda wildcards, input: Path(input.model).parent,
        images=files_to_predict,
        expression=lambda wildcards, input: [f"--expression={path}" for path in input.expression[:1]],
        cases=cases_to_predict,
        options=lambda wildcards: PLAN.predict_options(wildcards.source),
    shell:
        "{params.mgi:q} predict {params.folder:q} {params.images:q} {params.expression:q} {params.cases:q} "
        "--options {params.options:q} --device cpu -o {output:q} > {log:q} 2>&1"
