"""Fine-tuning: a denoiser with level dropout, a noise-level regressor, a student of guidance. One loop, resumable bit for bit.

The commands are `nag finetune denoiser`, `regressor`, `distill`, `direction` and `merge`; `--help` lists their options.
"""
