rule finetune:
    input:
        checked=checked,
        images=image_tables,
        sources="<results>/{cohort}/sources.parquet",
        expression=profiles,
        splits="<results>/{cohort}/splits.parquet",
        pretrained=encoders,
        folds=fold_models,
    output:
        # A job that fails leaves the model of an earlier run.
        model=update("<results>/{cohort}/finetune/{variant}/fold{fold}/model.safetensors"),
        config=update("<results>/{cohort}/finetune/{variant}/fold{fold}/config.json"),
        metrics=update("<results>/{cohort}/finetune/{variant}/fold{fold}/metrics.csv"),
        predictions=update("<results>/{cohort}/finetune/{variant}/fold{fold}/predictions.parquet"),
    log:
        "<logs>/{cohort}/finetune/{variant}/fold{fold}.log",
    benchmark:
        "<benchmarks>/{cohort}/finetune/{variant}/fold{fold}.tsv"
    wildcard_constraints:
        variant=match_exactly(CFG.finetune),
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
        fold=lambda wildcards: getattr(wildcards, "fold", "all"),
        options=options("finetune", "variant"),
        expression=lambda wildcards, input: [f"--expression={path}" for path in input.expression[:1]],
        pretrained=lambda wildcards, input: [f"--pretrained={Path(path).parent}" for path in input.pretrained[:1]],
        folds=lambda wildcards, input: [f"--decide-as={Path(path).parent}" for path in input.folds],
    shell:
        "{params.mgi:q} finetune --sources {input.sources:q} --splits {input.splits:q} {params.expression:q} "
        "{params.pretrained:q} {params.folds:q} --fold {params.fold:q} --options {params.options:q} "
        "-o {params.folder:q} > {log:q} 2>&1"


use rule finetune as finetune_all with:
    output:
        model=update("<results>/{cohort}/finetune/{variant}/all/model.safetensors"),
        config=update("<results>/{cohort}/finetune/{variant}/all/config.json"),
        metrics=update("<results>/{cohort}/finetune/{variant}/all/metrics.csv"),
    log:
        "<logs>/{cohort}/finetune/{variant}/all.log",
    benchmark:
        "<benchmarks>/{cohort}/finetune/{variant}/all.tsv"
