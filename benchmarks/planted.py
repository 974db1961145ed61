"""What the method recovers from cohorts whose truth is known: one simulated cohort for each setting, end to end.

- `alignment`: 120 patients, 40 of them held out. Retrieval beside its yardstick, and how well image embeddings tell
  each of the six planted look factors.
- `encoders`: retrieval on the same cohort by other encoders of the genes, and after shuffled pairs: then at chance.
- `null`: no gene follows the bit, so `mgi` minus `image-only` is about 0.
- `dose-response`: the effect of the switch genes from 2 to 0.25 standard deviations, and their number from 200 to 10.
- `second-truth`: a look factor decides which texture is the tumour; its genes tell it, and the tissue shows it faintly.

Each runs the whole workflow with the demo's settings but for what is named here, in a folder of its own, and prints
what its tables say. Done jobs are not repeated.

    python benchmarks/planted.py alignment -o planted
    python benchmarks/planted.py null dose-response second-truth -o planted --cores 4
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mgi.config.demo import DEMO
from mgi.evaluate.retrieval import retrieval_table

ROOT = Path(__file__).resolve().parents[1]
SEED = 22
SWITCHES = [(2.0, 200), (1.0, 200), (0.5, 200), (0.25, 200), (2.0, 50), (2.0, 10)]
COMPARED = ["image-only", "mgi"]
# Pre-training variants of the demo, and the encoders of the genes without principal components beside them.
ENCODERS = ["mgi", "transformer", "mlp", "linear", "shuffled-order", "shuffled-pairs"]
ALONE = {f"{name}-alone": {"base": name, "gene_encoder": {"components": 0}} for name in ENCODERS[:4]}


def list_settings() -> dict[str, dict[str, dict[str, Any]]]:
    """Return for each benchmark its cohorts, and what of the demo's configuration each of them changes."""
    held_out = {"simulate": {"cases": 120}, "split": {"folds": 3, "run": [0]}, "evaluate": {"variants": COMPARED}}
    pretraining = [*COMPARED, "no-pretraining", "image-only-no-pretraining"]
    return {
        "alignment": {"alignment": held_out},
        "encoders": {"alignment": held_out | {"pretrain": ALONE}},
        "null": {"null": {"simulate": {"switch_sd": 0.0}, "evaluate": {"variants": COMPARED}}},
        "dose-response": {
            f"switch-{sd:g}-of-{genes}": {
                "simulate": {"switch_sd": sd, "switch_genes": genes},
                "evaluate": {"variants": COMPARED},
            }
            for sd, genes in SWITCHES
        },
        "second-truth": {"second-truth": {"simulate": {"tumour_by": "look"}, "evaluate": {"variants": pretraining}}},
    }


def configure(changes: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Return the demo's configuration with some keys of its sections changed."""
    changed = {name: DEMO.get(name, {}) | section for name, section in changes.items()}
    return DEMO | changed | {"seed": seed}


def run_workflow(folder: Path, targets: list[str], cores: int) -> None:
    """Run the workflow for the configuration in `folder`."""
    command = ["-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.yaml"), "--cores", str(cores), "--rerun-incomplete"]
    subprocess.run(
        [sys.executable, *command, *targets],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )


def list_targets(benchmark: str) -> list[str]:
    """Return what is asked of the workflow, within the results of the cohort."""
    if benchmark == "alignment":
        return ["evaluate/retrieval.csv", "evaluate/probe.csv"]
    if benchmark == "encoders":
        return [f"pretrain/{name}/fold0/embeddings.parquet" for name in (*ENCODERS, *ALONE)]
    return ["evaluate/comparison.csv"]


def show_retrieval(table: Path) -> None:
    """Print a table of retrieval."""
    retrieval = pd.read_csv(table).query("fold == 'all'")
    columns = ["variant", "direction", "k", "recall", "low", "high", "chance", "median_rank", "hubness"]
    print(retrieval[columns].to_string(index=False))


def show(cohort: Path, benchmark: str) -> None:
    """Print what the tables of a cohort say."""
    results = cohort / "evaluate"
    if benchmark == "encoders":
        folders = [cohort / "pretrain" / name / "fold0" for name in (*ENCODERS, *ALONE)]
        retrieval_table([folder / "embeddings.parquet" for folder in folders], cohort / "retrieval.csv")
        show_retrieval(cohort / "retrieval.csv")
        return
    if benchmark == "alignment":
        show_retrieval(results / "retrieval.csv")
        probes = pd.read_csv(results / "probe.csv").query("shots == 'all'")
        print(
            probes[["encoder", "side", "target", "metric", "value", "low", "high", "permuted"]].to_string(index=False)
        )
        return
    comparison = pd.read_csv(results / "comparison.csv")
    columns = ["variant", "n_patients", "dice", "low", "high", "difference", "difference_low", "difference_high"]
    print(comparison[columns].to_string(index=False))


def main() -> None:
    """Run the benchmarks that are named."""
    settings = list_settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", choices=settings)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the cohorts")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seed", type=int, default=SEED, help="not the demo's, on which no setting is chosen")
    chosen = parser.parse_args()
    for benchmark in chosen.benchmarks:
        for name, changes in settings[benchmark].items():
            folder = (chosen.output / name).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(configure(changes, chosen.seed), sort_keys=False))
            cohort = folder / "results" / "simulated"
            run_workflow(folder, [f"results/simulated/{name}" for name in list_targets(benchmark)], chosen.cores)
            print(f"\n{name}, seed {chosen.seed}")
            show(cohort, benchmark)


if __name__ == "__main__":
    main()
