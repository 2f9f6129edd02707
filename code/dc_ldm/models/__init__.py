"""Networks of Stable Diffusion 1.5 and the samplers that drive them."""
