"""Fine-tuning: a denoiser with level dropout, and a noise-level regressor. One loop, resumable bit for bit.

The commands are `nag finetune denoiser` and `nag finetune regressor`; `--help` lists their options.
"""
