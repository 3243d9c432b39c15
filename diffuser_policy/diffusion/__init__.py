"""The diffusion process: schedule, denoiser, conditions, guidance, samplers."""
