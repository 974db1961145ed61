rule pretrain:
    input:
        images=image_tables,
        sources="results/{cohort}/sources.parquet",
        expression="results/{cohort}/expression.parquet",
        genes="results/{cohort}/genes.parquet",
        splits="results/{cohort}/splits.parquet",
    output:
        model="results/{cohort}/pretrain/{variant}/{run}/model.safetensors",
        config="results/{cohort}/pretrain/{variant}/{run}/config.json",
        metrics="results/{cohort}/pretrain/{variant}/{run}/metrics.csv",
    log:
        "logs/{cohort}/pretrain/{variant}/{run}.log",
    benchmark:
        "logs/{cohort}/pretrain/{variant}/{run}.tsv"
    wildcard_constraints:
        variant=one_of(CFG.pretrain),
    conda:
        TRAINING_ENV
    threads: CFG.threads
    resources:
        mem_mb=CFG.resources.train_mem_mb,
        runtime=CFG.resources.train_runtime_min,
        gpu=GPU,
    params:
        folder=lambda wildcards, output: Path(output.model).parent,
        fold=lambda wildcards: wildcards.run.removeprefix("fold"),
        options=options("pretrain"),
    shell:
        "python -m mgi pretrain --sources {input.sources:q} --expression {input.expression:q} "
        "--splits {input.splits:q} --fold {params.fold} --options {params.options:q} "
        "-o {params.folder:q} > {log} 2>&1"
