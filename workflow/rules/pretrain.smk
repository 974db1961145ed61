rule pretrain:
    input:
        checked=checked,
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        expression="<results>/{cohort}/expression.parquet",
        genes="<results>/{cohort}/genes.parquet",
        splits="<results>/{cohort}/splits.parquet",
    output:
        # A job that fails leaves the model of an earlier run.
        model=update("<results>/{cohort}/pretrain/{variant}/{run}/model.safetensors"),
        config=update("<results>/{cohort}/pretrain/{variant}/{run}/config.json"),
        metrics=update("<results>/{cohort}/pretrain/{variant}/{run}/metrics.csv"),
    log:
        "<logs>/{cohort}/pretrain/{variant}/{run}.log",
    benchmark:
        "<benchmarks>/{cohort}/pretrain/{variant}/{run}.tsv"
    wildcard_constraints:
        variant=match_exactly(CFG.pretrain),
    conda:
        TRAINING_ENV
    threads: CFG.training_threads
    resources:
        **CFG.gpu_resources(),
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
    params:
        mgi=training_command,
        folder=lambda wildcards, output: Path(output.model).parent,
        fold=lambda wildcards: wildcards.run.removeprefix("fold"),
        options=options("pretrain", "variant"),
    shell:
        "{params.mgi:q} pretrain --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --fold {params.fold:q} --options {params.options:q} "
        "-o {params.folder:q} > {log:q} 2>&1"
