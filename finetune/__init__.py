"""Fine-tuning: a denoiser with level dropout, and a noise-level regressor. One loop, resumable bit for bit.

    nag finetune denoiser --help
    nag finetune regressor --help
"""
