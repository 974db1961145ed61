"""Runs that end early: a state that cannot be used, a full disk, SIGTERM."""

import errno
import logging
import os
import signal
import struct

import pandas as pd
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

import mgi
from mgi.errors import TrainingError, TrainingInterruptedError
from mgi.model.segmenter import Segmenter
from mgi.train import finetune as stage
from mgi.train import loop, resume
from mgi.train.finetune import finetune
from mgi.train.interruption import Interruption
from mgi.train.loop import TrainingRun
from mgi.train.pretrain import pretrain
from mgi.train.resume import LAST, code_hash


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def run(cohort, pretrained, finetune_options, tmp_path):
    """A function that fine-tunes into a folder."""

    def run(folder=tmp_path / "run", **changes):
        options = finetune_options(**changes)
        finetune(options, cohort.sources, cohort.expression, cohort.splits, "0", pretrained, folder)
        return folder

    return run


@pytest.fixture
def steps(monkeypatch):
    """A list that grows by each step of a training run."""
    steps, update = [], TrainingRun._update
    monkeypatch.setattr(
        TrainingRun, "_update", lambda self, step, *rest: steps.append(step) or update(self, step, *rest)
    )
    return steps


def state_of(run, monkeypatch, folder) -> bytes:
    """The last.ckpt of a run that is complete but for its end."""
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finish", lambda self: None)
        run(folder)
    return (folder / LAST).read_bytes()


@pytest.mark.parametrize("spoilt", ["empty", "truncated", "text", "foreign", "list", "folded", "shapes", "optimiser"])
def test_ignores_unusable_state_with_one_warning(spoilt, run, finetuned, steps, tmp_path, monkeypatch, caplog):
    good = state_of(run, monkeypatch, tmp_path / "good")
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / LAST
    state = torch.load(tmp_path / "good" / LAST, weights_only=True)
    if spoilt == "empty":
        path.write_bytes(b"")
    elif spoilt == "truncated":
        path.write_bytes(good[: len(good) // 2])
    elif spoilt == "text":
        path.write_text("not a checkpoint")
    elif spoilt == "foreign":
        torch.save({"state_dict": {}, "epoch": 3}, path)
    elif spoilt == "list":
        torch.save([1, 2], path)
    elif spoilt == "folded":
        torch.save(state | {"identity": None}, path)
    elif spoilt == "shapes":
        torch.save(state | {"model": {name: value[:1] for name, value in state["model"].items() if value.ndim}}, path)
    else:
        torch.save(state | {"optimiser": {"state": {}, "param_groups": []}}, path)
    steps.clear()
    with caplog.at_level(logging.WARNING, logger="mgi"):
        run(folder)
    assert steps == [0, 1, 2, 3, 4, 5] and weights(folder) == weights(finetuned)
    warnings = [record for record in caplog.records if LAST in record.getMessage()]
    assert len(warnings) == 1 and "training starts from the beginning" in warnings[0].getMessage()
    assert not path.exists()


def test_ignores_state_of_another_model(run, pretrain_options, cohort, finetuned, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finish", lambda self: None)
        pretrain(pretrain_options, cohort.sources, cohort.expression, cohort.splits, "0", tmp_path / "other")
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "other" / LAST).rename(folder / LAST)
    with caplog.at_level(logging.WARNING, logger="mgi"):
        run(folder)
    assert weights(folder) == weights(finetuned)
    assert "was written under another configuration" in caplog.text


def test_ignores_state_written_by_other_code(run, steps, tmp_path, monkeypatch, caplog):
    state_of(run, monkeypatch, tmp_path / "run")
    steps.clear()
    monkeypatch.setattr(loop, "code_hash", lambda: "another")
    with caplog.at_level(logging.WARNING, logger="mgi"):
        run(tmp_path / "run")
    assert len(steps) == 6 and "was written under another code" in caplog.text


def test_code_hash_covers_model_training_codecs_and_readers_of_slides(monkeypatch):
    read = []
    original = resume.Path.read_bytes
    monkeypatch.setattr(resume.Path, "read_bytes", lambda self: read.append(self.name) or original(self))
    code_hash.cache_clear()
    first = code_hash()
    assert {"alignment.py", "segmenter.py", "loop.py", "data.py", "codecs.py", "pixels.py", "native.py"} <= set(read)
    monkeypatch.setattr(resume.Path, "read_bytes", lambda self: original(self) + b"#" * (self.name == "codecs.py"))
    code_hash.cache_clear()
    assert code_hash() != first
    code_hash.cache_clear()


@pytest.mark.parametrize("kind", ["system", "torch"])
def test_full_disk_is_one_sentence_and_keeps_the_state_before(kind, run, finetuned, tmp_path, monkeypatch):
    save, written = torch.save, []

    def fail_the_second_time(state, handle):
        if written:
            full = OSError(errno.ENOSPC, "No space left on device")
            try:
                raise full
            except OSError:
                if kind == "torch":
                    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # noqa: B904
                raise
        written.append(state["step"])
        save(state, handle)

    monkeypatch.setattr(torch, "save", fail_the_second_time)
    with pytest.raises(TrainingError, match=r"cannot write .*last\.ckpt: No space left on device; make room") as caught:
        run(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["step"] == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LAST, "events"}
    monkeypatch.setattr(torch, "save", save)
    assert weights(run(tmp_path / "run")) == weights(finetuned)


def test_stops_where_the_validation_loss_is_no_number(run, monkeypatch):
    monkeypatch.setattr(stage, "_validate", lambda *_: ((0.0,), {"val_loss": float("nan")}))
    with pytest.raises(TrainingError, match="validation loss is nan"):
        run()


def read_events(folder) -> dict[tuple[str, int], float]:
    """The scalars of a run's event files, read by the format of TFRecord: length, its sum, data, its sum."""
    found = {}
    for file in (folder / "events").iterdir():
        content, start = file.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            start += 16 + length
    return found


def test_events_for_tensorboard_hold_the_rows_of_the_metrics(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_is_due", lambda self: self.step == 2)
        patch.setattr(TrainingRun, "finish", lambda self: None)
        run(folder)
    run(folder)
    metrics = pd.read_csv(folder / "metrics.csv")
    expected = {(name, row["step"]): row[name] for _, row in metrics.iterrows() for name in row.index if name != "step"}
    assert read_events(folder) == pytest.approx(expected, rel=1e-4)
    assert len(list((folder / "events").iterdir())) == 2
    run(folder)
    assert len(list((folder / "events").iterdir())) == 1


def test_removes_what_a_killed_process_left_half_written(run, tmp_path):
    (tmp_path / "run").mkdir()
    leftovers = [tmp_path / "run" / f".{name}.12ab34cd.part" for name in (LAST, "model.safetensors")]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    run(tmp_path / "run", steps=1)
    assert not any(leftover.exists() for leftover in leftovers)


@pytest.mark.parametrize("moment", ["step", "validation"])
def test_sigterm_saves_the_state_and_the_resumed_run_ends_in_the_same_weights(
    moment, run, finetuned, steps, tmp_path, monkeypatch
):
    folder, update, validate, done = tmp_path / "run", TrainingRun._update, stage._validate, []

    def update_and_be_told(self, step, *rest):
        loss = update(self, step, *rest)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    def be_told_and_validate(*arguments):
        done.append(1)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    with monkeypatch.context() as patch:
        if moment == "step":
            patch.setattr(TrainingRun, "_update", update_and_be_told)
        else:
            patch.setattr(stage, "_validate", be_told_and_validate)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(TrainingInterruptedError, match=r"SIGTERM.*the state at step [34] of 6 is saved"):
            run(folder)
        assert signal.getsignal(signal.SIGTERM) is before
    assert torch.load(folder / LAST, weights_only=True)["step"] == (3 if moment == "step" else 4)
    assert not (folder / "model.safetensors").exists()
    steps.clear()
    run(folder)
    assert steps == ([3, 4, 5] if moment == "step" else [4, 5])
    assert weights(folder) == weights(finetuned)
    columns = [
        [line.split(",")[:3] + line.split(",")[4:] for line in (path / "metrics.csv").read_text().splitlines()]
        for path in (folder, finetuned)
    ]
    assert columns[0] == columns[1], "the same losses and validations; only the speed differs"


def test_signal_waits_for_the_end_of_a_deferred_block():
    interruption, reached = Interruption(), []
    with interruption.watched(), pytest.raises(TrainingInterruptedError), interruption.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append(1)
    assert reached == [1] and interruption.requested


def test_running_average_is_kept_and_survives_resuming(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", ema_decay=0.9)
    plain = run(tmp_path / "plain")
    assert weights(whole) != weights(plain)
    update = TrainingRun._update

    def stop_at_five(self, step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        return update(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_update", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", ema_decay=0.9)
    assert weights(run(tmp_path / "cut", ema_decay=0.9)) == weights(whole)


def test_running_average_is_that_of_the_weights_after_each_step(run, tmp_path, monkeypatch):
    seen, update = [], TrainingRun._update

    def record(self, step, *rest):
        # A gene that does not vary among the training patients.
        self.model.gene_encoder.scale[0] = torch.inf
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()} if not seen else None)
        loss = update(self, step, *rest)
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return loss

    monkeypatch.setattr(TrainingRun, "_update", record)
    model = mgi.load(run(tmp_path / "run", ema_decay=0.3))
    states = [state for state in seen if state is not None]
    name = "head.weight"
    expected = states[0][name]
    for step, state in enumerate(states[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state[name]
    torch.testing.assert_close(model.state_dict()[name], expected)
    scale = "gene_encoder.scale"
    torch.testing.assert_close(model.state_dict()[scale], states[0][scale])


def test_interrupted_while_it_takes_its_own_weights_back_it_ends_in_the_same(run, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", ema_decay=0.5)
    load, calls = Segmenter.load_state_dict, []

    def load_half(self, state, *rest):
        calls.append(len(state))
        if len(calls) == 2:  # the first gave the model the running average
            load(self, dict(list(state.items())[: len(state) // 2]), strict=False)
            raise TrainingInterruptedError("training was told to end (SIGTERM)")
        return load(self, state, *rest)

    with monkeypatch.context() as patch, pytest.raises(TrainingInterruptedError, match="is saved"):
        patch.setattr(Segmenter, "load_state_dict", load_half)
        run(tmp_path / "run", ema_decay=0.5)
    assert len(calls) == 2 and weights(run(tmp_path / "run", ema_decay=0.5)) == weights(whole)
