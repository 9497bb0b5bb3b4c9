"""Networks: dLDM, video diffusion model, policy. Nothing here reads data, logs or saves."""
