"""Which checkpoints stay: the last ones and the best."""

from accelerate import Accelerator

from minigpt4.training.checkpoints import last_checkpoint, replacing_checkpoint


def test_the_last_few_and_the_best_stay(tmp_path):
    for step in (3, 6, 9, 12, 100):
        best = "checkpoint-6" if step >= 6 else None
        with replacing_checkpoint(Accelerator(cpu=True), tmp_path, best, limit=2) as aside:
            (aside / f"checkpoint-{step}").mkdir()
            (aside / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-12", "checkpoint-100"}
    assert last_checkpoint(tmp_path).endswith("checkpoint-100")
