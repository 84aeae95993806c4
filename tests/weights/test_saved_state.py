"""What others saved becomes our state, bit for bit; what cannot is refused in one line and never run."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from safetensors.torch import save_file

from gptscale.config.schema import ModelConfig
from gptscale.errors import CheckpointError
from gptscale.model.gpt import GPTModel
from gptscale.runtime.saved_state import read_torch_file
from gptscale.runtime.zero_saved import read_zero_state
from gptscale.weights.saved_state import read_saved_state

SMALL = ModelConfig(vocab_size=10, context_length=4, emb_dim=8, n_heads=2, n_layers=1)
MOMENTS = ("exp_avg", "exp_avg_sq")


def groups_in_order(model: GPTModel) -> list[Any]:
    return list(model.parameters())


def matrices_first(model: GPTModel) -> list[Any]:
    return [{"params": [p for p in model.parameters() if (p.dim() < 2) == last]} for last in (False, True)]


def matrices_last(model: GPTModel) -> list[Any]:
    return matrices_first(model)[::-1]


def trained(
    groups: Any = matrices_first, optimizer: Any = torch.optim.AdamW, cfg: ModelConfig = SMALL
) -> tuple[GPTModel, Any]:
    """A model after two updates with gradients that differ everywhere."""
    model = GPTModel(cfg, seed=3)
    made = optimizer(groups(model), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        made.step()
    return model, made


def save_state(folder: Path, model: GPTModel, optimizer: Any, prefix: str = "", pickled: bool = False) -> Path:
    """The files that Accelerate writes under DDP."""
    weights = {prefix + name: p.detach() for name, p in model.named_parameters()}
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    return folder


@pytest.mark.parametrize("groups", [groups_in_order, matrices_first, matrices_last])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_and_moments_come_by_name_in_any_order(tmp_path: Path, groups: Any, prefix: str, pickled: bool) -> None:
    model, optimizer = trained(groups)
    found = read_saved_state(save_state(tmp_path, model, optimizer, prefix, pickled), SMALL)
    assert found.step == 2
    assert {kind: list(held) for kind, held in found.tensors.items()} == {
        kind: [name for name, _ in model.named_parameters()] for kind in ("weight", *MOMENTS)
    }
    for name, p in model.named_parameters():
        assert torch.equal(found.tensors["weight"][name], p)
        for kind in MOMENTS:
            assert torch.equal(found.tensors[kind][name], optimizer.state[p][kind])


def test_tied_weights_may_come_by_the_name_of_the_head(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_state(tmp_path, model, optimizer)
    weights = {name.replace("tok_emb.", "out_head."): p.detach() for name, p in model.named_parameters()}
    assert "tok_emb.weight" not in weights
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(read_saved_state(tmp_path, SMALL).tensors["weight"]["tok_emb.weight"], model.tok_emb.weight)


def test_a_model_in_several_files_is_put_together(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_state(tmp_path, model, optimizer)
    (tmp_path / "model.safetensors").unlink()
    weights = [(name, p.detach()) for name, p in model.named_parameters()]
    save_file(dict(weights[:3]), tmp_path / "model-00001-of-00002.safetensors")
    save_file(dict(weights[3:]), tmp_path / "model-00002-of-00002.safetensors")
    assert len(read_saved_state(tmp_path, SMALL).tensors["weight"]) == len(weights)


def last_block_first(model: GPTModel) -> list[Any]:
    """A group for each block, as rates that differ by layer need; the blocks have the same shapes."""
    parts = [[p for name, p in model.named_parameters() if name.startswith(start)] for start in ("tok", "pos", "final")]
    return [{"params": part} for part in (*parts[:2], *(list(b.parameters()) for b in model.blocks[::-1]), parts[2])]


def test_groups_whose_order_shapes_do_not_tell_are_refused(tmp_path: Path) -> None:
    cfg = SMALL.model_copy(update={"n_layers": 2})
    save_state(tmp_path, *trained(last_block_first, cfg=cfg))
    with pytest.raises(CheckpointError, match=r"28 states in 5 groups, .* in one group or in two \(matrices, and the"):
        read_saved_state(tmp_path, cfg)


def test_a_head_of_its_own_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_state(tmp_path, model, optimizer)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    head = weights["tok_emb.weight"].clone()
    save_file({**weights, "out_head.weight": head}, tmp_path / "model.safetensors")
    assert "out_head.weight" not in read_saved_state(tmp_path, SMALL).tensors["weight"]
    save_file({**weights, "out_head.weight": head + 1}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"weight of \w+.weight and of \w+.weight differ .* model.tie_embeddings=f"
    ):
        read_saved_state(tmp_path, SMALL)


def test_a_tied_weight_that_is_not_finite_is_no_other_head(tmp_path: Path) -> None:
    model, optimizer = trained()
    model.tok_emb.weight.data[1, 2] = torch.nan
    weights = {name: p.detach() for name, p in model.named_parameters()}
    save_state(tmp_path, model, optimizer)
    save_file({**weights, "out_head.weight": weights["tok_emb.weight"].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="weight of tok_emb.weight has values that are not finite"):
        read_saved_state(tmp_path, SMALL)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    model, optimizer = trained()
    model.blocks[0].ff.fc.weight.data[1, 2] = value
    with pytest.raises(
        CheckpointError, match=r"weight of blocks.0.ff.fc.weight has values that are not finite; take an"
    ):
        read_saved_state(save_state(tmp_path, model, optimizer), SMALL)


class Harmful:
    """Unpickled as pickle likes it, makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("file", ["optimizer.bin", "pytorch_model.bin"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, file: str) -> None:
    save_state(tmp_path, *trained(), pickled=True)
    torch.save({"state": {}, "harm": Harmful(tmp_path / "harm")}, tmp_path / file)
    with pytest.raises(
        CheckpointError, match=rf"{file} cannot be read as tensors and plain values, .*a pickle can run"
    ):
        read_saved_state(tmp_path, SMALL)
    assert not (tmp_path / "harm").exists()
    torch.load(tmp_path / file, weights_only=False)
    assert (tmp_path / "harm").exists()  # it would have been harmful


class FromEarly311:
    """As Python 3.11.0 to 3.11.3 pickle the member of an enum: as a call of getattr."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (DynamicLossScaler, "__module__")


def test_a_member_of_an_enum_is_read_whichever_python_wrote_it(tmp_path: Path) -> None:
    torch.save({"stage": FromEarly311(), "step": torch.tensor(3)}, tmp_path / "state.pt")
    read = read_torch_file(tmp_path / "state.pt")
    assert read["step"] == 3
    assert type(read["stage"]).__name__ == "_Opaque"  # and not what getattr would have given, a text


def test_a_broken_pickle_in_a_whole_archive_is_one_line(tmp_path: Path) -> None:
    save_state(tmp_path, *trained())
    with zipfile.ZipFile(tmp_path / "optimizer.bin") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "optimizer.bin", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"" if name.endswith("data.pkl") else content)
    with pytest.raises(CheckpointError, match=r"optimizer.bin cannot be read as tensors and plain values, .* \(EOFErr"):
        read_saved_state(tmp_path, SMALL)


def test_other_models_and_optimizers_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_state(tmp_path, model, optimizer)
    wider = SMALL.model_copy(update={"emb_dim": 16})
    with pytest.raises(
        CheckpointError, match=r"holds no AdamW state of this model: 16 states in 2 groups, the model has 16 parameters"
    ):
        read_saved_state(tmp_path, wider)
    save_state(tmp_path, *trained(optimizer=torch.optim.Adagrad))
    with pytest.raises(CheckpointError, match="optimizer.bin holds no AdamW state of this model"):
        read_saved_state(tmp_path, SMALL)
    save_state(tmp_path, trained(cfg=wider)[0], optimizer)
    with pytest.raises(CheckpointError, match=r"weight of tok_emb.weight has the shape \[64, 16\], not \[64, 8\]"):
        read_saved_state(tmp_path, SMALL)
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weight of tok_emb.weight has the shape none, not \[64, 8\]"):
        read_saved_state(tmp_path, SMALL)
    save_file(
        {"w": torch.zeros(1), **{n: p.detach() for n, p in model.named_parameters()}}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"it holds w \(1 such tensors\), of which the model does not know"):
        read_saved_state(tmp_path, SMALL)


def test_what_is_no_saved_state_is_told_from_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no folder of Accelerate's save_state .* and no ZeRO checkpoint"):
        read_saved_state(tmp_path, SMALL)
    save_state(tmp_path, *trained())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model.bin is missing; copy the whole folder"):
        read_saved_state(tmp_path, SMALL)
    torch.save([1], tmp_path / "optimizer.bin")
    with pytest.raises(CheckpointError, match="optimizer.bin holds a list, not the dictionary of a saved state"):
        read_saved_state(tmp_path, SMALL)


def zero_files(folder: Path, *, ranks: int = 2, **changes: Any) -> Path:
    """A ZeRO-2 checkpoint of a single parameter of 4 elements, as far as it is looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"param_shapes": [{"w": torch.Size([4])}]}, folder / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        flat = torch.arange(2.0) + 2 * rank
        state = {"step": torch.tensor(1.0), "exp_avg": flat, "exp_avg_sq": flat}
        share = {
            "single_partition_of_fp32_groups": [flat],
            "base_optimizer_state": {"state": {0: state}},
            "partition_count": [2],
            **changes,
        }
        torch.save({"optimizer_state_dict": share}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def model_elsewhere(folder: Path) -> None:
    torch.save({"param_shapes": [{"w": torch.Size([0])}]}, folder / "mp_rank_00_model_states.pt")


def other_layout(folder: Path) -> None:
    for path in folder.glob("*_optim_states.pt"):
        torch.save({"optimizer_state_dict": {}}, path)


def model_parallel(folder: Path) -> None:
    second = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    second.rename(folder / "zero_pp_rank_0_mp_rank_01_optim_states.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: None, "does not fit model: weight of tok_emb.weight has the shape none"),
        (lambda folder: (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink(), r"1 of 2 \*_optim_states.pt; copy"),
        (lambda folder: zero_files(folder, base_optimizer_state={"state": {0: {"step": torch.tensor(1.0)}}}),
         "holds no exp_avg for parameter group 0; only states of AdamW"),
        (lambda folder: (folder / "mp_rank_00_model_states.pt").unlink(), "mp_rank_00_model_states.pt is missing; copy"),
        (model_elsewhere, "DeepSpeed cannot put its parameters together: consumed"),
        (other_layout, r"is not laid out as by deepspeed 0.19 \(KeyError: 'partition_count'\)"),
        (model_parallel, "was written with model parallelism"),
    ],
)  # fmt: skip
def test_zero_checkpoints_that_cannot_be_used_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    damage(zero_files(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        read_saved_state(tmp_path, SMALL)


def test_ranks_are_put_together_by_their_numbers(tmp_path: Path) -> None:
    zero_files(tmp_path, ranks=11, partition_count=[11])  # 10 comes behind 9, not behind 1
    torch.save({"param_shapes": [{"w": torch.Size([22])}]}, tmp_path / "mp_rank_00_model_states.pt")
    found = read_zero_state(tmp_path).tensors
    assert [found[kind]["w"].tolist() for kind in ("weight", "exp_avg")] == [list(range(22))] * 2


@pytest.mark.parametrize("latest", [True, False])
def test_the_newest_step_of_a_deepspeed_folder_is_taken(tmp_path: Path, latest: bool) -> None:
    for step in (9, 10):
        zero_files(tmp_path / f"global_step{step}", ranks=step - 8)
    if latest:
        (tmp_path / "latest").write_text("global_step9\n")
    with pytest.raises(CheckpointError, match="global_step9 holds 1 of 2" if latest else "global_step10 does not fit"):
        read_saved_state(tmp_path, SMALL)
