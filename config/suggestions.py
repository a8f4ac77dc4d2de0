"""What a mistyped or foreign key means here: by what other programs call it, then by its letters."""

import difflib
from collections.abc import Sequence

CUTOFF = 0.7  # of difflib's ratio: `grad_clip` and `grad_clip_norm` have 0.78, `learning_rate` and `ema_rate` 0.57

# What other training programs call the keys of this one, by the last part of the key.
SYNONYMS = {
    "lr": "learning_rate learningrate base_lr max_lr peak_lr init_lr initial_lr learn_rate",
    "lr_min_ratio": "min_lr lr_min final_lr lr_end eta_min min_lr_ratio",
    "lr_decay_share": "decay_ratio decay_fraction decay_share cooldown cooldown_ratio cooldown_fraction lr_decay "
    "lr_hold stable_ratio wsd",
    "lr_warmup_steps": "warmup warmup_steps num_warmup_steps warmup_iters warmup_ratio warmup_epochs n_warmup",
    "global_batch_size": "batch_size bs batch batchsize train_batch_size per_device_batch_size micro_batch_size "
    "per_device_train_batch_size",
    "eval_batch_size": "test_batch_size val_batch_size validation_batch_size per_device_eval_batch_size",
    "weight_decay": "wd l2 l2_reg decay weightdecay",
    "beta1": "adam_beta1 b1 momentum",
    "beta2": "adam_beta2 b2",
    "grad_clip_norm": "grad_clip gradient_clip clip clip_norm max_grad_norm gradient_clip_val gradient_clipping "
    "clip_grad clip_grad_norm grad_norm_clip",
    "ema": "use_ema model_ema",
    "ema_rate": "ema_decay ema_beta ema_momentum ema_alpha",
    "epochs": "num_epochs n_epochs max_epochs num_train_epochs",
    "eval_interval": "eval_every eval_freq evaluate_every val_interval val_every validation_interval "
    "check_val_every_n_epoch eval_epochs",
    "log_interval": "log_every log_freq logging_steps log_every_n_steps print_freq log_steps",
    "checkpoint_interval": "save_interval save_every save_steps ckpt_interval checkpoint_every save_freq",
    "checkpoint_every_eval": "save_every_eval",
    "checkpoint_keep": "save_total_limit keep_last save_top_k max_checkpoints keep_checkpoints",
    "checkpoint_best": "save_best best_metric metric_for_best_model monitor",
    "resume": "resume_from resume_from_checkpoint checkpoint checkpoint_path ckpt ckpt_path load_checkpoint restore",
    "load_pretrained_decoder": "pretrained pretrained_path init_from load_from weights pretrained_model",
    "data_paths": "data_path data_dir dataset dataset_path dataset_dir datasets data_root train_data data_folder",
    "data_workers": "num_workers workers n_workers dataloader_num_workers num_data_workers loader_workers",
    "max_train_groups": "num_train_puzzles max_train_samples train_size max_train_puzzles num_train_groups limit_train",
    "max_eval_groups": "num_eval_puzzles max_eval_samples max_val_groups max_eval_puzzles num_eval_groups limit_val",
    "max_eval_augmentations": "votes num_votes num_augmentations eval_augmentations num_aug",
    "max_demos": "num_demos n_demos max_demonstrations num_shots n_shots shots max_shots",
    "seed": "random_seed rng_seed manual_seed",
    "device": "accelerator cuda use_cuda use_gpu no_cuda gpu",
    "compile": "torch_compile use_compile",
    "optimizer": "optim opt optimiser optimizer_name",
    "project_name": "project wandb_project proj",
    "run_name": "name experiment_name exp_name experiment run exp wandb_name wandb_run_name run_id",
    "wandb_group": "group",
    "wandb_tags": "tags wandb_tag tag",
    "distributed_timeout_s": "timeout ddp_timeout dist_timeout",
    "arch": "model model_type model_name architecture system",
    "arch.hidden_size": "hidden_dim d_model hidden dim n_embd embed_dim embedding_dim model_dim width emb_dim n_embed",
    "arch.num_heads": "heads n_heads n_head nhead num_attention_heads head_count nheads",
    "arch.expansion": "mlp_ratio ffn_ratio ff_mult mlp_expansion ffn_expansion",
    "arch.L_layers": "num_layers n_layers n_layer layers depth num_hidden_layers decoder_layers",
    "arch.encoder_num_layers": "encoder_layers encoder_depth num_encoder_layers n_encoder_layers enc_layers",
    "arch.encoder_type": "encoder encoder_name",
    "arch.encoder_pooling_method": "pooling_method encoder_pooling pool",
    "arch.encoder_aligned_cells": "aligned_cells encoder_aligned aligned",
    "arch.forward_dtype": "dtype precision amp fp16 bf16 mixed_precision torch_dtype use_amp",
    "arch.pos_encodings": "pos_encoding positional_encoding position_encoding pos_emb positional_embedding",
    "arch.halt_max_steps": "max_act_steps act_steps halt_steps n_sup supervision_steps max_halt_steps",
    "arch.halt_exploration_prob": "exploration exploration_prob",
    "arch.puzzle_emb_len": "context_len num_context_tokens context_tokens num_latents",
    "arch.loss.loss_type": "loss_fn loss_function criterion",
    "arch.loss.kl_weight": "kl_coef kl_beta kl_coeff beta_kl",
    "arch.text_model": "llm language_model lm model_name_or_path",
}
MEANINGS = {word: key for key, words in SYNONYMS.items() for word in words.split()}

# What other programs have a key for, and this one has something else for.
ELSEWHERE = {
    "max_steps num_steps train_steps total_steps steps iterations max_iters n_iters num_iterations training_steps": (
        "a run's length is 'epochs', each of which draws every training puzzle once: a run has "
        "epochs * puzzles / global_batch_size steps"
    ),
    "eval_steps val_check_interval": "'eval_interval' counts epochs, each of which draws every training puzzle once",
    "output_dir outdir out_dir save_dir log_dir checkpoint_dir work_dir output run_dir exp_dir save_path logdir": (
        "a run's folder is runs/<project_name>/<run_name>, in the working directory"
    ),
    "wandb use_wandb no_wandb wandb_mode disable_wandb report_to logger offline": (
        "wandb is switched by the environment: WANDB_MODE=disabled or offline in front of the command"
    ),
    "wandb_entity entity": "wandb reads WANDB_ENTITY from the environment",
    "num_gpus n_gpus gpus ngpu gpu_ids devices num_nodes world_size strategy nproc_per_node num_processes ddp": (
        "torchrun --nproc-per-node N in front of the script takes N devices, and CUDA_VISIBLE_DEVICES chooses them"
    ),
    "local_rank node_rank rank master_addr master_port": (
        "torchrun gives ranks by environment variables: torchrun --nproc-per-node N pretrain_etrm.py ..."
    ),
    "gradient_accumulation_steps grad_accum accumulate_grad_batches accumulation_steps": (
        "each batch has its own optimizer step: global_batch_size is the batch"
    ),
    "config config_file cfg_file config_path": "--config-dir DIR --config-name NAME reads DIR/NAME.yaml",
}
ADVICE = {word: advice for words, advice in ELSEWHERE.items() for word in words.split()}


def meant(key: str, known: Sequence[str]) -> str | None:
    """The known key that a key means, by its name elsewhere or its letters; None where none is near."""
    last = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    word = _word(key)
    if key in known or MEANINGS.get(word) in known:
        return key if key in known else MEANINGS[word]
    if word in last or word in ADVICE:
        return last.get(word)
    close = difflib.get_close_matches(word, list(last), n=1, cutoff=CUTOFF)
    return last[close[0]] if close else None


def suggestion(key: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown key: which key is meant, or what there is instead; or nothing."""
    near = meant(key, [name for name in known if name != key])
    if near is not None:
        return f"; the nearest key is '{near}'"
    advice = ADVICE.get(_word(key))
    return f"; {advice}" if advice else ""


def _word(key: str) -> str:
    """Its last part, written as keys are."""
    return key.rsplit(".", 1)[-1].lower().replace("-", "_")
