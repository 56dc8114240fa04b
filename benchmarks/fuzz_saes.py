"""Targets of `fuzz.py`: SAE files in each layout, and expected figures of SAEs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from fuzz_files import Beside

D_MODEL, N_LATENTS, SITE = 16, 32, "resid_post.1"


def tensors(**shapes: tuple[int, ...]) -> dict[str, Any]:
    """Draw random tensors; `__` in a name stands for a dot."""
    import torch

    g = torch.Generator().manual_seed(0)
    return {name.replace("__", "."): torch.randn(s, generator=g) for name, s in shapes.items()}


def write(folder: Path, config: tuple[str, Any], weights: str, stored: dict[str, Any]) -> None:
    """Write a config and the weights next to it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / config[0]).write_text(json.dumps(config[1]))
    if weights.endswith(".pt"):
        torch.save(stored, folder / weights)
    else:
        save_file(stored, folder / weights)


def own(folder: Path) -> None:
    """Write a TopK SAE in nullsae's format."""
    import torch

    from nullsae.jobs.keys import CellKeys
    from nullsae.sae.autoencoder import Autoencoder
    from nullsae.sae.files import save_sae

    g = torch.Generator().manual_seed(0)
    shapes = ((N_LATENTS, D_MODEL), (N_LATENTS,), (N_LATENTS, D_MODEL), (D_MODEL,))
    sae = Autoencoder("topk", *(torch.randn(*s, generator=g) for s in shapes), k=4)
    keys = CellKeys(subject="s", variant="trained", draw=0, site=SITE, sae="a", seed=0)
    described: dict[str, Any] = {"dictionary": "learned", "keys": keys, "seed": 0}
    described |= {"activations_key": "a", "key": "k", "input_norm": 1.0, "training": {}}
    folder.mkdir(parents=True, exist_ok=True)
    save_sae(sae, folder, n_steps=1, **described)


def exported(layout: str) -> Callable[[Path], None]:
    """Write an SAE of nullsae in another package's layout."""

    def make(folder: Path) -> None:
        from nullsae.sae.exchange.export import export_sae

        own(folder / "own")
        export_sae(folder / "own/cfg.json", layout, folder)
        shutil.rmtree(folder / "own")

    return make


def saelens_old(folder: Path) -> None:
    """Write a gated SAE of SAELens before version 6, with the config of a whole training."""
    config: dict[str, Any] = {"architecture": "gated", "d_in": D_MODEL, "d_sae": N_LATENTS}
    config |= {"model_name": "gpt2-small", "hook_name": "blocks.1.hook_resid_post"}
    config |= {"activation_fn_str": "relu", "activation_fn_kwargs": {}, "context_size": 128}
    config |= {"normalize_activations": "none", "prepend_bos": True, "dtype": "torch.float32"}
    config |= {"apply_b_dec_to_input": False, "hook_head_index": None, "training_tokens": 10**9}
    config |= {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    config |= {"dataset_path": "Skylion007/openwebtext", "sae_lens_training_version": "3.1.0"}
    vectors = dict.fromkeys(("b_gate", "b_mag", "r_mag"), (N_LATENTS,))
    matrices = {"W_enc": (D_MODEL, N_LATENTS), "W_dec": (N_LATENTS, D_MODEL), "b_dec": (D_MODEL,)}
    write(folder, ("cfg.json", config), "sae_weights.safetensors", tensors(**matrices, **vectors))


def sparsify_transcoder(folder: Path) -> None:
    """Write a skip transcoder of sparsify, with the config of its training in the parent folder."""
    config = {"d_in": D_MODEL, "k": 4, "expansion_factor": 2, "num_latents": N_LATENTS}
    config |= {"transcode": True, "skip_connection": True, "activation": "topk", "signed": False}
    shapes = {"encoder__weight": (N_LATENTS, D_MODEL), "encoder__bias": (N_LATENTS,)}
    shapes |= {"W_dec": (N_LATENTS, D_MODEL), "b_dec": (D_MODEL,), "W_skip": (D_MODEL, D_MODEL)}
    write(folder / "layers.1.mlp", ("cfg.json", config), "sae.safetensors", tensors(**shapes))
    run = {"model": "EleutherAI/pythia-70m", "dataset": "EleutherAI/the_pile", "ctx_len": 2048}
    (folder / "config.json").write_text(json.dumps({**run, "revision": None, "sae": config}))


def dictionary_learning(dict_class: str, weights: str) -> Callable[[Path], None]:
    """Write a dictionary of dictionary_learning, as its trainers save it."""

    def make(folder: Path) -> None:
        trainer = {"dict_class": dict_class, "activation_dim": D_MODEL, "dict_size": N_LATENTS}
        trainer |= {"trainer_class": "Trainer", "lr": 1e-4, "seed": 0, "k": 4, "device": "cuda:0"}
        trainer |= {"layer": 1, "lm_name": "gpt2", "submodule_name": "resid_post_layer_1"}
        buffer = {"d_submodule": D_MODEL, "ctx_len": 128, "io": "out", "n_ctxs": 244}
        shapes: dict[str, tuple[int, ...]] = {"encoder__weight": (N_LATENTS, D_MODEL)}
        shapes |= {"decoder__weight": (D_MODEL, N_LATENTS)}
        if dict_class == "GatedAutoEncoder":
            shapes |= dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), (N_LATENTS,))
            shapes["decoder_bias"] = (D_MODEL,)
        else:
            shapes |= {"encoder__bias": (N_LATENTS,), "b_dec": (D_MODEL,), "threshold": ()}
        config = {"trainer": trainer, "buffer": buffer}
        write(folder, ("config.json", config), weights, tensors(**shapes))

    return make


class Saes(Beside):
    """A file of an SAE."""

    def __init__(self, name: str, make: Callable[[Path], None], file: str, inside: str) -> None:
        """`inside` is the SAE's folder within what `make` makes."""
        self.name, self._make, self.file, self.inside = name, make, file, inside

    def make(self, folder: Path) -> None:
        """Write an SAE of random weights."""
        self._make(folder)

    def read(self, data: bytes, folder: Path) -> None:
        """Read it like `saes.NAME.pretrained`, and compare it with a study."""
        from nullsae.config.made_on import UsedOn, differences
        from nullsae.sae.exchange.pretrained import read_with_origin

        path = str(self.placed(data, folder) / self.inside)
        found = read_with_origin(path, SITE, where="config: saes.a.pretrained")
        known: dict[str, Any] = {"model": "gpt2", "revision": None, "data_set": "a/b"}
        used = UsedOn(subject="s", corpus="c", context_tokens=128, prepend_bos=True, **known)
        for _, sentence in differences(found.made_on, used, SITE):
            assert sentence


class Expected:
    """The values of `nullsae check --expect`."""

    name: ClassVar[str] = "expect"

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """Values as its help shows them, and each figure."""
        return (b"l0=71,explained_variance=0.8", b"l0 = 3.5", b"explained_variance=1e-3")

    def read(self, data: bytes, folder: Path) -> None:
        """Parse it as the command line does."""
        from nullsae.cli.sae_card import expected

        # What the system makes of bytes that are not UTF-8.
        expected(data.decode("utf-8", "surrogateescape"))


def targets() -> list[Any]:
    """Return the targets of this module."""
    topk_pt = dictionary_learning("AutoEncoderTopK", "ae.pt")
    gated = dictionary_learning("GatedAutoEncoder", "ae.safetensors")
    batch = dictionary_learning("BatchTopKSAE", "ae.safetensors")
    module = "layers.1.mlp"
    return [
        Saes("nullsae_cfg", own, "cfg.json", ""),
        Saes("nullsae_sae", own, "sae.safetensors", ""),
        Saes("saelens_cfg", exported("saelens"), "cfg.json", ""),
        Saes("saelens_sae_weights", exported("saelens"), "sae_weights.safetensors", ""),
        Saes("saelens_old_cfg", saelens_old, "cfg.json", ""),
        Saes("sparsify_cfg", exported("sparsify"), "cfg.json", ""),
        Saes("sparsify_sae", exported("sparsify"), "sae.safetensors", ""),
        Saes("sparsify_transcoder", sparsify_transcoder, f"{module}/cfg.json", module),
        Saes("sparsify_run", sparsify_transcoder, "config.json", module),
        Saes("dictionary_learning_gated", gated, "config.json", ""),
        Saes("dictionary_learning_config", batch, "config.json", ""),
        Saes("dictionary_learning_ae", batch, "ae.safetensors", ""),
        Saes("dictionary_learning_pt", topk_pt, "ae.pt", ""),
        Expected(),
    ]
